package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/zcstore/zcstore/proto/zcerr"
)

// interrupted is what a command's error means once Ctrl-C was pressed. What is more than the end itself, such as something
// that could not be removed, is told.
func interrupted(err error) error {
	if zcerr.KindOf(err) == zcerr.Canceled {
		return zcerr.New(zcerr.Canceled, "interrupted")
	}
	return zcerr.New(zcerr.Canceled, "interrupted: %w", err)
}

// inCommand names a command in the error of a call that is only a part of it.
func inCommand(op, model string, err error) error {
	var e *zcerr.Error
	if !errors.As(err, &e) {
		return zcerr.Wrap(op, model, err)
	}
	named := *e
	named.Op, named.Model = op, model
	return &named
}

// wantsJSON looks for -o json in a command line that could not be parsed.
func wantsJSON(args []string) bool {
	for i, arg := range args {
		switch arg {
		case "-ojson", "-o=json", "--output=json":
			return true
		case "-o", "--output":
			if i+1 < len(args) && args[i+1] == "json" {
				return true
			}
		}
	}
	return false
}

// saidError is an error whose parts were reported when they came. Only its exit code is left to give.
type saidError struct{ exit int }

func (e *saidError) Error() string { return fmt.Sprintf("exit %d", e.exit) }

// errorJSON is how an error is written with -o json.
type errorJSON struct {
	Schema int       `json:"schema"`
	Error  errorBody `json:"error"`
}

type errorBody struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
	Hint    string `json:"hint"`
	Exit    int    `json:"exit"`
}

func bodyOf(err error) errorBody {
	k := zcerr.KindOf(err)
	return errorBody{Kind: k.String(), Message: err.Error(), Hint: zcerr.HintOf(err), Exit: k.Exit()}
}

// report writes an error with its hint to standard error, and gives the exit code.
func (a *app) report(err error) int {
	b := bodyOf(err)
	if b.Hint == "" && zcerr.KindOf(err) == zcerr.Timeout {
		b.Hint = "a larger --timeout waits longer; zcctl doctor looks at the daemon"
	}
	if a.json() {
		_ = writeJSON(a.stderr, errorJSON{Schema: schema, Error: b})
		return b.Exit
	}
	fmt.Fprintln(a.stderr, "zcctl:", clean(b.Message))
	if b.Hint != "" {
		fmt.Fprintln(a.stderr, "  "+clean(b.Hint))
	}
	return b.Exit
}

// usage makes an error of cobra one of ours: kind Invalid, with the way to the help.
func usage(cmd *cobra.Command, err error) error {
	var e *zcerr.Error
	if errors.As(err, &e) {
		return err
	}
	path := "zcctl"
	if cmd != nil {
		path = cmd.CommandPath()
	}
	u := zcerr.New(zcerr.Invalid, "%w", err).WithHint("%s --help", path)
	if cmd != nil && cmd.HasParent() {
		u.Op = cmd.Name()
	}
	return u
}
