"""Contract suites, fakes and disk makers, importable by anybody's tests."""
