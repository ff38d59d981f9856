package main

import (
	"fmt"

	"github.com/zcstore/zcstore/internal/units"
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
)

// guardsJSON is who could still change published bytes, and what happens to them, as data.
type guardsJSON struct {
	OtherUIDs       string `json:"other_uids"` // never, by_name, by_descriptor, unknown
	SameUID         string `json:"same_uid"`
	Root            string `json:"root"`
	SurvivesRestart bool   `json:"survives_restart"` // of the daemon
	Swap            string `json:"swap"`             // never, none, possible, unknown
	HugePages       bool   `json:"huge_pages"`       // the file system gives pages of 2 MiB where it can
	HugeBytes       uint64 `json:"huge_bytes"`       // that it gave, as measured
}

func guardsOf(g *zcstorev1.Guarantee) guardsJSON {
	return guardsJSON{
		reach(g.GetOtherUids()), reach(g.GetSameUid()), reach(g.GetRoot()), g.GetSurvivesRestart(), swap(g.GetSwap()), g.GetHugePages(), g.GetHugeBytes(),
	}
}

func reach(r zcstorev1.Reach) string {
	switch r {
	case zcstorev1.Reach_REACH_NEVER:
		return "never"
	case zcstorev1.Reach_REACH_BY_NAME:
		return "by_name"
	case zcstorev1.Reach_REACH_BY_DESCRIPTOR:
		return "by_descriptor"
	}
	return "unknown"
}

func swap(s zcstorev1.Swap) string {
	switch s {
	case zcstorev1.Swap_SWAP_NEVER:
		return "never"
	case zcstorev1.Swap_SWAP_NONE:
		return "none"
	case zcstorev1.Swap_SWAP_POSSIBLE:
		return "possible"
	}
	return "unknown"
}

// pageWords says what pages the weights are in, huge of size bytes being in those of 2 MiB, and whether they may be swapped.
func pageWords(g *zcstorev1.Guarantee, size uint64) string {
	huge := g.GetHugeBytes()
	words := "4 KiB each"
	switch {
	case huge > 0:
		words = fmt.Sprintf("%s of %s in pages of 2 MiB", units.Bytes(huge), units.Bytes(size))
	case g.GetHugePages() && size > 0:
		words = "4 KiB each, though the file system would give larger ones: memory is fragmented, or what is stored is small"
	case g.GetHugePages():
		words = "2 MiB each where memory is not fragmented"
	}
	switch g.GetSwap() {
	case zcstorev1.Swap_SWAP_NEVER:
		words += "; never swapped out"
	case zcstorev1.Swap_SWAP_NONE:
		words += "; this machine has no swap"
	case zcstorev1.Swap_SWAP_POSSIBLE:
		words += "; may be swapped out"
	}
	return words
}

// restartWords says whether the weights outlive the daemon.
func restartWords(g *zcstorev1.Guarantee) string {
	if g.GetSurvivesRestart() {
		return "stay when the daemon ends or is killed; a reboot takes them"
	}
	return "go when the daemon ends"
}

// checkPages says which pages the weights are in, and how to get larger ones.
func checkPages(st *zcstorev1.StatusReply) check {
	const name = "pages"
	if g := st.Guards; g.GetSwap() == zcstorev1.Swap_SWAP_POSSIBLE {
		return warn(name, "mount the tmpfs with noswap (deploy/srv-zcstore.mount)", "%s", pageWords(g, st.UsedBytes))
	}
	return ok(name, "%s", pageWords(st.Guards, st.UsedBytes))
}

// checkDurability says what survives what.
func checkDurability(st *zcstorev1.StatusReply) check {
	const name = "durability"
	if st.Guards != nil && !st.Guards.SurvivesRestart && st.DataDirectory == "" {
		return warn(name, "run it under systemd with FileDescriptorStoreMax= (deploy/zcstored-memfd.conf), or with --backing shm", "%s", st.Durability)
	}
	return ok(name, "%s", st.Durability)
}
