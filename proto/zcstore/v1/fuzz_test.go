package zcstorev1

import (
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

// Every message of the protocol takes whatever bytes come: it refuses them, or holds what it can encode again. Fields of a newer
// peer are kept.
func FuzzMessages(f *testing.F) {
	var all []protoreflect.MessageType
	protoregistry.GlobalTypes.RangeMessages(func(m protoreflect.MessageType) bool {
		if m.Descriptor().ParentFile().Package() == "zcstore.v1" && !m.Descriptor().IsMapEntry() {
			all = append(all, m)
		}
		return true
	})
	if len(all) < 20 {
		f.Fatalf("only %d messages are registered", len(all))
	}
	f.Add([]byte{})
	f.Add([]byte("\x0a\x02m:"))
	f.Add([]byte("\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"))
	b, _ := proto.Marshal(&AttachRequest{Protocol: 1, Step: &AttachRequest_Open{Open: "m"}})
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, mt := range all {
			m := mt.New().Interface()
			if proto.Unmarshal(b, m) != nil {
				continue
			}
			again, err := proto.Marshal(m)
			if err != nil {
				continue // a string that is no UTF-8
			}
			m2 := mt.New().Interface()
			if err := proto.Unmarshal(again, m2); err != nil || !proto.Equal(m, m2) {
				t.Errorf("%s: %v", mt.Descriptor().Name(), err)
			}
		}
	})
}
