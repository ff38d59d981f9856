package server

import (
	"github.com/zcstore/zcstore/internal/limits"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
)

func limitsInfo(l limits.Limits) *zcstorev1.Limits {
	conns, _ := l.ConnsNow()
	return &zcstorev1.Limits{
		Connections: uint32(conns), ConnectionsPerUid: uint32(l.ConnsPerUID), SilentPerUid: uint32(l.SilentPerUID),
		LeasesPerUid: uint32(l.LeasesPerUID), OpenPuts: uint32(l.Puts), OpenPutsPerUid: uint32(l.PutsPerUID),
		ImportsPerUid: uint32(l.ImportsPerUID), ListsPerUid: uint32(l.ListsPerUID), BytesPerUid: l.BytesPerUID, ReservedFds: uint32(l.ReservedFDs),
		FdsInFlight: uint32(l.InFlight), Calls: uint32(l.Streams), RecvBytes: uint64(l.RecvBytes), SendBytes: uint64(l.SendBytes),
		HeaderBytes: uint64(l.HeaderBytes), HandshakeMs: uint64(l.Handshake.Milliseconds()), IdleMs: uint64(l.Idle.Milliseconds()),
		UnreadMs: uint64(l.Unread.Milliseconds()),
	}
}
