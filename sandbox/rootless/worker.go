package rootless

/*
#include "stage_linux.h"
*/
import "C"

import (
	"fmt"
	"os"
	"runtime"
	"strconv"
)

// The worker's open files: the C stages use syncFD and close it.
const (
	syncFD  = C.MSTAGE_SYNC_FD
	connFD  = syncFD + 1
	firstFD = connFD + 1
)

// IsWorker reports whether this process is a worker that Start made. It is in
// its namespaces then, as uid 0 with all capabilities over them, not as PID 1.
func IsWorker() bool { return C.mstage_is_worker != 0 }

// The worker's main thread runs main and nothing else. libcontainer and the
// network code leave threads behind in a container's namespaces, to end there;
// the main thread can't end, and /proc/self is its view of mounts and network.
func init() {
	if IsWorker() {
		runtime.LockOSThread()
	}
}

// WorkerConn returns the worker's end of Worker.Conn, a stream socket. It reads
// EOF when the other process has died. The caller closes it; call it once.
func WorkerConn() (*os.File, error) {
	if !IsWorker() {
		return nil, fmt.Errorf("open worker connection: this process is no worker")
	}
	return os.NewFile(connFD, "worker-conn"), nil
}

// WorkerFile returns Options.ExtraFiles[i] in the worker. The caller closes it.
func WorkerFile(i int) *os.File {
	return os.NewFile(uintptr(firstFD+i), "worker-file-"+strconv.Itoa(i))
}
