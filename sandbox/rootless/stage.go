package rootless

/*
#include "stage_linux.h"
*/
import "C"

// The names of stage_linux.h in Go; cgo is not for tests, so they get them here.
const (
	argv0    = C.MSTAGE_ARGV0
	goMapped = C.MSTAGE_GO_MAPPED
	goDirect = C.MSTAGE_GO_DIRECT

	stepReady  = C.MSTAGE_STEP_READY
	stepReexec = C.MSTAGE_STEP_REEXEC
	stepProc   = C.MSTAGE_STEP_PROC
	stepTmpfs  = C.MSTAGE_STEP_TMPFS

	stepOverlay = C.MSTAGE_STEP_OVERLAY
)
