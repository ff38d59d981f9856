// Package zcerr is the error of zcstore, the same on both sides of the socket.
//
// An [Error] says what was being done, to which model, what kind of thing went wrong, and what to do next. It crosses gRPC
// whole: [ToStatus] on the server, [FromStatus] on the client, so errors.Is(err, zcerr.NotFound) works in a worker as it
// does in the daemon. zcctl turns the kind into an exit code.
package zcerr

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"unicode"
	"unicode/utf8"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Kind is what sort of thing went wrong. It is itself an error, to be the target of errors.Is. Append only.
type Kind uint8

// The kinds. What the reader can do next stands in the error's Hint.
const (
	Other       Kind = iota // anything else, and kinds of a newer peer
	Invalid                 // a field, an argument or a file is not as it must be
	NotFound                // no such model, version, tensor
	Conflict                // it exists, or somebody holds it
	Unavailable             // no daemon answers
	NoSpace                 // it does not fit: need, have, who holds the rest
	Corrupt                 // bytes are not what their digest says
	Timeout                 // waited too long
	Denied                  // this uid may not
	Unsupported             // an op, dtype, architecture or version that is not built
	Limit                   // a limit of this daemon: which, its value
	Fault                   // a segment shrank or vanished under a mapping
	Canceled                // the caller gave up
)

var kinds = [...]struct {
	name string
	code codes.Code
	exit int
}{
	Other:       {"other", codes.Unknown, 1},
	Invalid:     {"invalid", codes.InvalidArgument, 2},
	NotFound:    {"not_found", codes.NotFound, 3},
	Conflict:    {"conflict", codes.AlreadyExists, 4},
	Unavailable: {"unavailable", codes.Unavailable, 5},
	NoSpace:     {"no_space", codes.ResourceExhausted, 6},
	Corrupt:     {"corrupt", codes.DataLoss, 7},
	Timeout:     {"timeout", codes.DeadlineExceeded, 8},
	Denied:      {"denied", codes.PermissionDenied, 9},
	Unsupported: {"unsupported", codes.Unimplemented, 10},
	Limit:       {"limit", codes.ResourceExhausted, 6},
	Fault:       {"fault", codes.Aborted, 7},
	Canceled:    {"canceled", codes.Canceled, 130},
}

// Kinds lists every kind, for tables and tests.
func Kinds() []Kind {
	all := make([]Kind, len(kinds))
	for i := range all {
		all[i] = Kind(i)
	}
	return all
}

func (k Kind) ok() Kind {
	if int(k) >= len(kinds) {
		return Other
	}
	return k
}

func (k Kind) String() string { return kinds[k.ok()].name }

// Error makes a Kind a target of errors.Is.
func (k Kind) Error() string { return k.String() }

// ErrorKind is the kind's name: errors that crossed another boundary than gRPC, such as a worker's pipe, match by it.
func (k Kind) ErrorKind() string { return k.String() }

// Code is the gRPC code the kind travels as.
func (k Kind) Code() codes.Code { return kinds[k.ok()].code }

// Exit is the exit code of zcctl.
func (k Kind) Exit() int { return kinds[k.ok()].exit }

func parseKind(s string) (Kind, bool) {
	for i, e := range kinds {
		if e.name == s {
			return Kind(i), true
		}
	}
	return Other, false
}

// Error is one failure. Fields that do not apply are empty.
type Error struct {
	Kind  Kind
	Op    string // what was being done: "put", "attach"
	Model string // the reference or name as the user gave it
	Hint  string // what to do next; ends with the command where there is one
	Err   error  // what happened
}

// New makes an error of a kind from a message in the style of fmt.Errorf.
func New(k Kind, format string, args ...any) *Error {
	return &Error{Kind: k, Err: fmt.Errorf(format, args...)}
}

// WithHint adds what to do next.
func (e *Error) WithHint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// Error gives what was done, to what, and what happened; the hint is shown apart.
func (e *Error) Error() string {
	s := ""
	if e.Op != "" {
		s = e.Op
		if e.Model != "" {
			s += " " + printable(e.Model)
		}
		s += ": "
	} else if e.Model != "" {
		s = printable(e.Model) + ": "
	}
	if e.Err == nil {
		return s + e.Kind.String()
	}
	return s + e.Err.Error()
}

// printable is a reference as somebody typed it, quoted when a terminal would not show it as it is.
func printable(s string) string {
	for _, r := range s {
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			return strconv.QuoteToASCII(s)
		}
	}
	return s
}

func (e *Error) Unwrap() error { return e.Err }

// Is makes errors.Is(err, zcerr.NotFound) work.
func (e *Error) Is(target error) bool {
	k, ok := target.(Kind)
	return ok && k == e.Kind
}

// ErrorKind is the kind's name. Errors of other packages that know their kind have this method too, and keep it on the way.
func (e *Error) ErrorKind() string { return e.Kind.String() }

// KindOf finds the kind of any error: an *Error in its chain, an ErrorKind method, a context error, a gRPC status; else Other.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	var named interface{ ErrorKind() string }
	if errors.As(err, &named) {
		if k, ok := parseKind(named.ErrorKind()); ok {
			return k
		}
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return Timeout
	case errors.Is(err, context.Canceled):
		return Canceled
	}
	if s, ok := status.FromError(err); ok && err != nil {
		return kindOfCode(s.Code())
	}
	return Other
}

// HintOf finds the hint of an error, or "".
func HintOf(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Hint
	}
	var h interface{ ErrorHint() string }
	if errors.As(err, &h) {
		return h.ErrorHint()
	}
	return ""
}

// Wrap gives err an operation and a model, keeping its kind and hint. nil stays nil; an op that is there already stays.
func Wrap(op, model string, err error) error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) && e.Op != "" {
		return err
	}
	w := &Error{Kind: KindOf(err), Op: op, Model: model, Hint: HintOf(err), Err: err}
	if e != nil && e == err {
		w.Err = e.Err
		if e.Model != "" {
			w.Model = e.Model
		}
	}
	return w
}

const domain = "zcstore"

// ToStatus is err as a gRPC status, with its fields in an ErrorInfo.
func ToStatus(err error) *status.Status {
	if err == nil {
		return status.New(codes.OK, "")
	}
	var e *Error
	if !errors.As(err, &e) {
		e = &Error{Kind: KindOf(err), Hint: HintOf(err), Err: err}
	}
	msg := e.Kind.String()
	if e.Err != nil {
		msg = e.Err.Error()
	}
	s := status.New(e.Kind.Code(), msg)
	with, derr := s.WithDetails(&errdetails.ErrorInfo{
		Domain: domain, Reason: e.Kind.String(),
		Metadata: map[string]string{"op": e.Op, "model": e.Model, "hint": e.Hint},
	})
	if derr != nil {
		return s
	}
	return with
}

// FromStatus turns what a gRPC call returned back into an *Error. A status without our ErrorInfo gets the kind of its code.
// nil stays nil.
func FromStatus(err error) error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return err
	}
	s, ok := status.FromError(err)
	if !ok {
		return &Error{Kind: KindOf(err), Err: err}
	}
	what := s.Message()
	if what == "" { // nobody should have to read an empty line
		what = s.Code().String()
	}
	e = &Error{Kind: kindOfCode(s.Code()), Err: errors.New(what)}
	for _, d := range s.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.Domain == domain {
			k, known := parseKind(info.Reason)
			if known {
				e.Kind = k
			}
			e.Op, e.Model, e.Hint = info.Metadata["op"], info.Metadata["model"], info.Metadata["hint"]
		}
	}
	return e
}

func kindOfCode(c codes.Code) Kind {
	if c == codes.FailedPrecondition {
		return Conflict
	}
	for k := Invalid; int(k) < len(kinds); k++ {
		if kinds[k].code == c {
			return k
		}
	}
	return Other
}
