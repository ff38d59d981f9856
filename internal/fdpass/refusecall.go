package fdpass

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/proto"

	"github.com/zcstore/zcstore/proto/zcerr"
)

// refuseCall is a gRPC server of one call, which fails: grpc's own would take a descriptor, three goroutines and buffers for as
// long as the client likes. It answers the first call within c's deadline.
func refuseCall(c *net.UnixConn, why error) error {
	if _, err := io.CopyN(io.Discard, c, int64(len(http2.ClientPreface))); err != nil {
		return err
	}
	f := http2.NewFramer(c, c)
	f.SetMaxReadFrameSize(16 << 10)
	if err := f.WriteSettings(); err != nil {
		return err
	}
	for range 32 { // before its first call a client has little to say
		frame, err := f.ReadFrame()
		if err != nil {
			return err
		}
		switch frame := frame.(type) {
		case *http2.SettingsFrame:
			if !frame.IsAck() {
				err = f.WriteSettingsAck()
			}
		case *http2.HeadersFrame:
			block, berr := failedCall(why)
			if berr != nil {
				return berr
			}
			id := frame.StreamID
			if err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true, EndStream: true}); err != nil {
				return err
			}
			return f.WriteGoAway(id, http2.ErrCodeEnhanceYourCalm, []byte(why.Error()))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// failedCall is the header block of a call that failed with err.
func failedCall(err error) ([]byte, error) {
	st := zcerr.ToStatus(err)
	details, merr := proto.Marshal(st.Proto())
	if merr != nil {
		return nil, merr
	}
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	for _, h := range [][2]string{
		{":status", "200"}, {"content-type", "application/grpc"}, {"grpc-status", strconv.Itoa(int(st.Code()))},
		{"grpc-message", percent(st.Message())}, {"grpc-status-details-bin", base64.RawStdEncoding.EncodeToString(details)},
	} {
		if err := enc.WriteField(hpack.HeaderField{Name: h[0], Value: h[1]}); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

// percent encodes a message as gRPC has it in headers.
func percent(s string) string {
	var b strings.Builder
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '%' {
			fmt.Fprintf(&b, "%%%02X", c)
		} else {
			b.WriteByte(c)
		}
	}
	return b.String()
}
