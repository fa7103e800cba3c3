package runc

import (
	"github.com/opencontainers/runc/libcontainer/configs"
	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/sandbox"
)

// ulimitNames are docker's names. Source: docker/go-units, ulimit.go.
var ulimitNames = map[string]int{
	"core": unix.RLIMIT_CORE, "cpu": unix.RLIMIT_CPU, "data": unix.RLIMIT_DATA,
	"fsize": unix.RLIMIT_FSIZE, "locks": unix.RLIMIT_LOCKS, "memlock": unix.RLIMIT_MEMLOCK,
	"msgqueue": unix.RLIMIT_MSGQUEUE, "nice": unix.RLIMIT_NICE, "nofile": unix.RLIMIT_NOFILE,
	"nproc": unix.RLIMIT_NPROC, "rss": unix.RLIMIT_RSS, "rtprio": unix.RLIMIT_RTPRIO,
	"rttime": unix.RLIMIT_RTTIME, "sigpending": unix.RLIMIT_SIGPENDING, "stack": unix.RLIMIT_STACK,
}

// rlimits refuses what can't be set: raising a hard limit takes CAP_SYS_RESOURCE
// in the host's user namespace.
func rlimits(ulimits []sandbox.Ulimit, ids idMappings) ([]configs.Rlimit, error) {
	mayRaise := mayRaiseLimits(ids)
	var out []configs.Rlimit
	for _, u := range ulimits {
		kind, ok := ulimitNames[u.Name]
		if !ok {
			return nil, startError(codeNotExecutable, "ulimit %s: no such limit", u.Name)
		}
		soft, hard := limitValue(u.Soft), limitValue(u.Hard)
		if soft > hard {
			return nil, startError(codeNotExecutable, "ulimit %s: soft limit %d is above hard limit %d", u.Name, u.Soft, u.Hard)
		}
		var now unix.Rlimit
		if err := unix.Getrlimit(kind, &now); err != nil {
			return nil, startError(codeNotExecutable, "ulimit %s: %w", u.Name, err)
		}
		if hard > now.Max && !mayRaise {
			return nil, startError(codeNotExecutable, "ulimit %s: %d is above this user's hard limit of %d", u.Name, u.Hard, now.Max)
		}
		out = append(out, configs.Rlimit{Type: kind, Soft: soft, Hard: hard})
	}
	return out, nil
}

func limitValue(v int64) uint64 {
	if v < 0 {
		return unix.RLIM_INFINITY
	}
	return uint64(v)
}

// mayRaiseLimits is for root on the host: capabilities in an own user namespace
// don't count for limits.
func mayRaiseLimits(ids idMappings) bool { return ids.initial && hasSysResource() }

func hasSysResource() bool {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	err := unix.Capget(&hdr, &data[0])
	return err == nil && data[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}
