package zcerr

import (
	"testing"

	spb "google.golang.org/genproto/googleapis/rpc/status"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Whatever a peer sends as a status: it becomes an error of a known kind, with a text, or no error when it says OK.
func FuzzFromStatus(f *testing.F) {
	for _, k := range Kinds() {
		b, err := proto.Marshal(ToStatus(New(k, "what happened").WithHint("do this")).Proto())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var p spb.Status
		if proto.Unmarshal(b, &p) != nil {
			return
		}
		err := FromStatus(status.FromProto(&p).Err())
		if err == nil {
			return
		}
		k := KindOf(err)
		if int(k) >= len(Kinds()) || err.Error() == "" {
			t.Errorf("%+v became %v, %q", &p, k, err)
		}
		_ = HintOf(err)
		if back := FromStatus(ToStatus(err).Err()); KindOf(back) != k {
			t.Errorf("%v came back as %v", k, KindOf(back))
		}
	})
}
