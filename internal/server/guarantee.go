package server

import (
	zcstorev1 "github.com/zcstore/zcstore/proto/zcstore/v1"
	"github.com/zcstore/zcstore/shm"
)

var reaches = map[shm.Reach]zcstorev1.Reach{
	shm.ReachNever: zcstorev1.Reach_REACH_NEVER, shm.ReachByName: zcstorev1.Reach_REACH_BY_NAME, shm.ReachByFD: zcstorev1.Reach_REACH_BY_DESCRIPTOR,
}

var swaps = map[shm.Swap]zcstorev1.Swap{
	shm.SwapNever: zcstorev1.Swap_SWAP_NEVER, shm.SwapNone: zcstorev1.Swap_SWAP_NONE, shm.SwapPossible: zcstorev1.Swap_SWAP_POSSIBLE,
}

// guards is a guarantee for the wire. What has no value there is unknown.
func guards(g shm.Guarantee, huge uint64) *zcstorev1.Guarantee {
	return &zcstorev1.Guarantee{
		OtherUids: reaches[g.OtherUIDs], SameUid: reaches[g.SameUID], Root: reaches[g.Root], SurvivesRestart: g.SurvivesRestart,
		Swap: swaps[g.Swap], HugePages: g.HugePages, HugeBytes: huge,
	}
}
