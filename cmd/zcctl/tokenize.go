package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/zcstore/zcstore/client/text"
	"github.com/zcstore/zcstore/models/tokenizer"
	"github.com/zcstore/zcstore/proto/zcerr"
)

const tokenizeHelp = `tokenize shows what a stored pipeline's tokenizer makes of texts, as the model gets it: pieces, ids, where each stands in
the text (bytes, and code points), and how many were cut off because the text is too long for the model.

Texts are the arguments, or the lines of --file (- is standard input, which is also read when there is nothing else).
--lines prints one JSON object for each text.`

const tokenizeExample = `  zcctl tokenize minilm "one copy of the weights"
  zcctl tokenize minilm --lines --file lines.txt`

type tokenizeResult struct {
	Text      string       `json:"text"`
	Tokens    int          `json:"tokens"`
	Truncated int          `json:"truncated_tokens,omitempty"`
	Pieces    []tokenPiece `json:"pieces"`
}

type tokenPiece struct {
	Piece   string `json:"piece"`
	ID      int32  `json:"id"`
	Bytes   [2]int `json:"bytes"`
	Runes   [2]int `json:"runes"`
	Special bool   `json:"special,omitempty"` // no part of the text
}

type tokenizeOutput struct {
	Schema  int              `json:"schema"`
	Ref     string           `json:"ref"`
	Digest  string           `json:"digest"`
	Results []tokenizeResult `json:"results"`
}

func tokenizeCmd(a *app) *cobra.Command {
	var f inferFlags
	cmd := &cobra.Command{
		Use: "tokenize REF [TEXT...]", Short: "Show the tokens of texts", GroupID: groupUse,
		Long: tokenizeHelp, Example: tokenizeExample, Args: args(true, "REF"), ValidArgsFunction: a.completeRefs(1),
		RunE: func(cmd *cobra.Command, argv []string) error {
			ctx, cancel := a.within(cmd.Context(), 0)
			defer cancel()
			c, err := a.dial(ctx)
			if err != nil {
				return err
			}
			defer c.Close()
			p, err := text.Open(ctx, c, argv[0])
			if err != nil {
				return err
			}
			defer p.Close()
			texts, err := f.texts(ctx, argv[1:], cmd.InOrStdin())
			if err != nil {
				return err
			}
			enc, err := p.Tokenize(texts)
			if err != nil {
				return zcerr.Wrap("tokenize", argv[0], err)
			}
			out := tokenizeOutput{Schema: schema, Ref: p.Stored().Ref(), Digest: p.Stored().Digest().String(), Results: []tokenizeResult{}}
			for i, e := range enc {
				out.Results = append(out.Results, tokensOf(texts[i], e))
			}
			switch {
			case f.lines:
				return writeLines(a.stdout, out.Results)
			case a.json():
				return json.NewEncoder(a.stdout).Encode(out)
			}
			g := newGrid(a.stdout, "", "PIECE", "ID", "BYTES", "RUNES")
			for i, r := range out.Results {
				if i > 0 {
					g.row("")
				}
				for _, t := range r.Pieces {
					if t.Special {
						g.row(clean(t.Piece), t.ID, "", "")
						continue
					}
					g.row(clean(t.Piece), t.ID, fmt.Sprintf("%d-%d", t.Bytes[0], t.Bytes[1]), fmt.Sprintf("%d-%d", t.Runes[0], t.Runes[1]))
				}
			}
			if err := g.flush(); err != nil {
				return err
			}
			for _, r := range out.Results {
				cutOff := ""
				if r.Truncated > 0 {
					cutOff = fmt.Sprintf(", %d cut off", r.Truncated)
				}
				a.talk("%s%s: %s", count(r.Tokens, "token"), cutOff, cut(r.Text, 60))
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&f.file, "file", "", "read the texts from this file, one a line")
	cmd.Flags().BoolVar(&f.lines, "lines", false, "print one JSON object for each text")
	return cmd
}

func tokensOf(s string, e *tokenizer.Encoding) tokenizeResult {
	r := tokenizeResult{Text: s, Tokens: len(e.IDs), Truncated: e.Truncated, Pieces: []tokenPiece{}}
	for i, id := range e.IDs {
		r.Pieces = append(r.Pieces, tokenPiece{e.Tokens[i], id, [2]int{e.Bytes[i].Start, e.Bytes[i].End}, [2]int{e.Offsets[i].Start, e.Offsets[i].End}, e.SpecialMask[i] == 1})
	}
	return r
}
