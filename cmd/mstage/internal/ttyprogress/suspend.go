package ttyprogress

import (
	"runtime"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// stopWait is how long a stop may take to happen: the kernel ignores SIGTSTP
// where no shell could continue the process.
const stopWait = 500 * time.Millisecond

// sigaction is the kernel's struct of that name on amd64 and arm64.
type sigaction struct {
	handler, flags, restorer uintptr
	mask                     uint64
}

// stopProcess does what SIGTSTP does where nobody listens. signal.Reset is not
// enough: Go's handler stays, and ignores it. SIGSTOP would stop a process that
// no shell waits for, for good.
func stopProcess() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var listening sigaction
	if err := setAction(unix.SIGTSTP, &sigaction{}, &listening); err != nil {
		return err
	}
	// To this thread, so that it stops before it makes the next call.
	err := unix.Tgkill(unix.Getpid(), unix.Gettid(), unix.SIGTSTP)
	if back := setAction(unix.SIGTSTP, &listening, nil); err == nil {
		err = back
	}
	return err
}

// setAction is rt_sigaction(2).
func setAction(signal unix.Signal, action, old *sigaction) error {
	_, _, errno := unix.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(signal),
		uintptr(unsafe.Pointer(action)), uintptr(unsafe.Pointer(old)), unsafe.Sizeof(action.mask), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}
