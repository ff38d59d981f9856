package tokenizer

// ContinuingPrefix is what tokens begin with that go on inside a word, as "##" of WordPiece; empty where tokens do not tell.
func (t *Tokenizer) ContinuingPrefix() string { return t.core.settings.Prefix }
