package zcerr

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestEveryKindCrossesAStatus(t *testing.T) {
	for _, k := range Kinds() {
		in := &Error{Kind: k, Op: "put", Model: "a/b:v1", Hint: "do this", Err: errors.New("what happened")}
		out := FromStatus(ToStatus(fmt.Errorf("outer: %w", in)).Err())
		var e *Error
		if !errors.As(out, &e) || !errors.Is(out, k) {
			t.Errorf("%v came back as %v", k, out)
			continue
		}
		if e.Op != in.Op || e.Model != in.Model || e.Hint != in.Hint || e.Error() != in.Error() {
			t.Errorf("%v: got %+v, want %+v", k, e, in)
		}
		for _, other := range Kinds() {
			if other != k && errors.Is(out, other) {
				t.Errorf("%v is also %v", k, other)
			}
		}
	}
}

func TestKindOf(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want Kind
	}{
		{New(NoSpace, "x"), NoSpace},
		{fmt.Errorf("w: %w", New(Limit, "x")), Limit},
		{context.Canceled, Canceled},
		{fmt.Errorf("w: %w", context.DeadlineExceeded), Timeout},
		{status.Error(codes.Unavailable, "x"), Unavailable},
		{status.Error(codes.FailedPrecondition, "x"), Conflict},
		{status.Error(codes.Code(99), "x"), Other},
		{io.EOF, Other},
		{Kind(200), Other},
	} {
		if got := KindOf(tt.err); got != tt.want {
			t.Errorf("KindOf(%v) = %v, want %v", tt.err, got, tt.want)
		}
	}
	if Kind(200).Exit() != 1 || Kind(200).Code() != codes.Unknown {
		t.Error("a kind of a newer peer must read as other")
	}
}

func TestWrapKeepsKindAndHint(t *testing.T) {
	err := Wrap("attach", "m", New(NotFound, "no model").WithHint("zcctl put m DIR"))
	if !errors.Is(err, NotFound) || HintOf(err) != "zcctl put m DIR" || err.Error() != "attach m: no model" {
		t.Errorf("got %v, hint %q", err, HintOf(err))
	}
	if again := Wrap("outer", "x", err); again != err {
		t.Errorf("an op was overwritten: %v", again)
	}
	if Wrap("op", "m", nil) != nil || FromStatus(nil) != nil {
		t.Error("nil must stay nil")
	}
}
