"""Results that travel: exports, bundles, pseudonyms, citations."""
