package e2e

import (
	"errors"
	"strings"
	"testing"

	"github.com/zcstore/zcstore/client"
	"github.com/zcstore/zcstore/internal/fdpass"
	"github.com/zcstore/zcstore/proto/zcerr"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
)

// Clients of the protocol before and after this one are refused, with both numbers and what to do, on both kinds of stream; the
// daemon serves others on.
func TestCase54OtherProtocols(t *testing.T) {
	p, other := withBystander(t)
	for _, v := range []uint32{0, client.Protocol + 1, 1 << 31} {
		plain, _ := api(t, p, fdpass.ClientCredentials(fdpass.ClientOptions{AllowServerUID: func(uint32) error { return nil }}))
		attach, err := plain.Attach(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := attach.Send(&zcstorev1.AttachRequest{Protocol: v, Step: &zcstorev1.AttachRequest_Open{Open: "bystander"}}); err != nil {
			t.Fatal(err)
		}
		_, aerr := attach.Recv()
		put, err := plain.Put(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := put.Send(beginning(v, "m", 10)); err != nil {
			t.Fatal(err)
		}
		_, perr := put.Recv()
		for what, err := range map[string]error{"attach": zcerr.FromStatus(aerr), "put": zcerr.FromStatus(perr)} {
			if !errors.Is(err, zcerr.Unsupported) || !strings.Contains(err.Error(), "this daemon protocol 1") || zcerr.HintOf(err) == "" {
				t.Errorf("%s with protocol %d: %v", what, v, err)
			}
		}
		other.works(t)
	}
}
