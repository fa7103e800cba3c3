// What the parent and the worker's C stages agree on.
#ifndef MSTAGE_STAGE_LINUX_H
#define MSTAGE_STAGE_LINUX_H

#include <stdint.h>

#ifndef CLOSE_RANGE_CLOEXEC
#define CLOSE_RANGE_CLOEXEC (1U << 2)
#endif

#define MSTAGE_ARGV0 "mstage-worker"
#define MSTAGE_ARGV0_MAPPED "mstage-worker-mapped"
#define MSTAGE_ARGV0_RUNNING "mstage"

#define MSTAGE_SYNC_FD 3
#define MSTAGE_PATH_MAX 4095

#define MSTAGE_GO_MAPPED 'm'
#define MSTAGE_GO_DIRECT 'd'

enum mstage_step {
	MSTAGE_STEP_READY,
	MSTAGE_STEP_REEXEC,
	MSTAGE_STEP_SETUID,
	MSTAGE_STEP_PDEATHSIG,
	MSTAGE_STEP_SLAVE,
	MSTAGE_STEP_PROC,
	MSTAGE_STEP_TMPFS,
	MSTAGE_STEP_FORK,
	MSTAGE_STEP_OVERLAY,
};

struct mstage_status {
	uint32_t step;
	int32_t err;
};

struct mstage_setup {
	uint32_t set_group;
	uint32_t probe; // try an overlay in the state directory, and end
	uint32_t state_dir_len;
};

extern int mstage_is_worker;

#endif
