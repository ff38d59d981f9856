package main

import zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"

// limitsJSON is what the daemon lets its clients have.
type limitsJSON struct {
	Connections       uint32 `json:"connections"` // what the limit of open files leaves, when that is less
	ConnectionsPerUID uint32 `json:"connections_per_uid"`
	SilentPerUID      uint32 `json:"silent_per_uid"`
	LeasesPerUID      uint32 `json:"leases_per_uid"`
	OpenPuts          uint32 `json:"open_puts"`
	OpenPutsPerUID    uint32 `json:"open_puts_per_uid"`
	ImportsPerUID     uint32 `json:"imports_per_uid"`
	ListsPerUID       uint32 `json:"lists_per_uid"`
	BytesPerUID       uint64 `json:"bytes_per_uid"` // 0: no quota
	ReservedFDs       uint32 `json:"reserved_fds"`
	FDsInFlight       uint32 `json:"fds_in_flight"`
	Calls             uint32 `json:"calls"`
	RecvBytes         uint64 `json:"recv_bytes"`
	SendBytes         uint64 `json:"send_bytes"`
	HeaderBytes       uint64 `json:"header_bytes"`
	HandshakeMS       uint64 `json:"handshake_ms"`
	IdleMS            uint64 `json:"idle_ms"`
	UnreadMS          uint64 `json:"unread_ms"`
}

func limitsOf(l *zcstorev1.Limits) limitsJSON {
	return limitsJSON{
		l.GetConnections(), l.GetConnectionsPerUid(), l.GetSilentPerUid(), l.GetLeasesPerUid(), l.GetOpenPuts(), l.GetOpenPutsPerUid(),
		l.GetImportsPerUid(), l.GetListsPerUid(), l.GetBytesPerUid(), l.GetReservedFds(), l.GetFdsInFlight(), l.GetCalls(), l.GetRecvBytes(), l.GetSendBytes(),
		l.GetHeaderBytes(), l.GetHandshakeMs(), l.GetIdleMs(), l.GetUnreadMs(),
	}
}
