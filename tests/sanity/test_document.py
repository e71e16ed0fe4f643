from tests.sanity import skipped


def test_the_document_tells_the_skipped_specs() -> None:
    """docs/CSI-SANITY.md is what `python -m tests.sanity.skipped` writes."""
    assert skipped.DOCUMENT.read_text() == skipped.document()
