package client

import (
	"encoding/hex"
	"testing"

	"google.golang.org/protobuf/proto"

	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
)

// What clients and daemons of protocol 1 say to each other when a model is attached, byte for byte. A change here is one of the
// protocol; so that releases next to each other understand one another, fields are only added.
func TestCase54GoldenMessages(t *testing.T) {
	for name, tt := range map[string]struct {
		msg, empty proto.Message
		wire       string
	}{
		"open": {&zcstorev1.AttachRequest{Protocol: 1, Claimed: 2, Step: &zcstorev1.AttachRequest_Open{Open: "m:v1"}}, &zcstorev1.AttachRequest{},
			"080110021a046d3a7631"},
		"release": {&zcstorev1.AttachRequest{Step: &zcstorev1.AttachRequest_Release{Release: 7}}, &zcstorev1.AttachRequest{}, "2007"},
		"opened": {&zcstorev1.AttachReply{Step: &zcstorev1.AttachReply_Opened{Opened: &zcstorev1.Attached{Lease: 7, Digest: []byte{1, 2}, Ref: "m:v1",
			FirstFd: 1, Fds: 2, TableBytes: 300, TableVersion: 1, Instance: "i"}}}, &zcstorev1.AttachReply{},
			"0a18080712020102" + "1a046d3a763120012802" + "30ac023801420169"},
		"error": {&zcstorev1.AttachReply{Step: &zcstorev1.AttachReply_Error{Error: &zcstorev1.Error{Code: 5, Kind: "not_found", Message: "no"}}}, &zcstorev1.AttachReply{},
			"1a11080512096e6f745f666f756e641a026e6f"},
	} {
		got, err := proto.MarshalOptions{Deterministic: true}.Marshal(tt.msg)
		if err != nil || hex.EncodeToString(got) != tt.wire {
			t.Errorf("%s is %x on the wire, was %s (%v)", name, got, tt.wire, err)
			continue
		}
		wire, err := hex.DecodeString(tt.wire)
		if err != nil {
			t.Fatal(err)
		}
		later := append(wire, 0xfa, 0x3f, 0x03, 'n', 'e', 'w') // field 1023 of a later release
		if err := proto.Unmarshal(later, tt.empty); err != nil {
			t.Errorf("%s with a field of a later release: %v", name, err)
		}
		tt.empty.ProtoReflect().SetUnknown(nil)
		if !proto.Equal(tt.empty, tt.msg) {
			t.Errorf("%s reads as %v", name, tt.empty)
		}
	}
}
