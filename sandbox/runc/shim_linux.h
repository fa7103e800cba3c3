// What the worker and the shim agree on.
#ifndef MSTAGE_SHIM_LINUX_H
#define MSTAGE_SHIM_LINUX_H

#include <stdint.h>

// The shim is the program of descriptor 3, so that nothing of it is in the
// image; it reads what to do from 4 and tells on 5 why it could not.
#define MSTAGE_SHIM_EXE "/proc/self/fd/3"
#define MSTAGE_SHIM_ARG "mstage-sandbox-shim"
#define MSTAGE_SHIM_EXE_FD 3
#define MSTAGE_SHIM_ORDER_FD 4
#define MSTAGE_SHIM_STATUS_FD 5

enum mstage_shim_step {
	MSTAGE_SHIM_ORDER = 1,
	MSTAGE_SHIM_CHDIR,
	MSTAGE_SHIM_USER,
	MSTAGE_SHIM_CAPS,
	MSTAGE_SHIM_SECCOMP,
	MSTAGE_SHIM_PDEATHSIG,
	MSTAGE_SHIM_EXEC,
};

struct mstage_shim_status {
	uint32_t step;
	int32_t err;
};

// The order starts with this. Behind it: the groups, the filter (8 bytes each
// instruction), then strings that end in NUL: the directory, PATH, the
// arguments, the environment.
struct mstage_shim_order {
	uint32_t uid, gid;
	uint32_t set_groups; // 0: this user namespace denies setgroups(2)
	uint32_t groups;
	uint32_t chown_stdio; // bit n: give descriptor n to uid
	uint32_t filter;      // instructions
	uint32_t args, env;
};

#endif
