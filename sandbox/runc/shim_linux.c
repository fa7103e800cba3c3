// The shim is the last program before the command in a sandbox. libcontainer
// starts it as root with docker's capabilities and CAP_SYS_ADMIN, which a
// seccomp filter needs while no_new_privs is off; the shim gives that one up,
// becomes the command's user and executes the command. It runs in a constructor
// and ends there, so the Go runtime never starts (0.5 ms instead of several).

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "shim_linux.h"

static _Noreturn void fail(uint32_t step, int err)
{
	struct mstage_shim_status s = { step, err };
	if (write(MSTAGE_SHIM_STATUS_FD, &s, sizeof s) < 0)
		_exit(126);
	_exit(127);
}

static char *map_order(char **end)
{
	struct stat st;
	if (fstat(MSTAGE_SHIM_ORDER_FD, &st) < 0)
		fail(MSTAGE_SHIM_ORDER, errno);
	if (st.st_size < (off_t)sizeof(struct mstage_shim_order))
		fail(MSTAGE_SHIM_ORDER, EINVAL);
	char *p = mmap(NULL, (size_t)st.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE, MSTAGE_SHIM_ORDER_FD, 0);
	if (p == MAP_FAILED)
		fail(MSTAGE_SHIM_ORDER, errno);
	*end = p + st.st_size;
	return p;
}

static char *next_string(char **p, char *end)
{
	char *s = *p;
	size_t n = strnlen(s, (size_t)(end - s));
	if (s + n >= end)
		fail(MSTAGE_SHIM_ORDER, EINVAL);
	*p = s + n + 1;
	return s;
}

static char **strings(uint32_t n, char **p, char *end)
{
	char **v = calloc((size_t)n + 1, sizeof *v);
	if (v == NULL)
		fail(MSTAGE_SHIM_ORDER, errno);
	for (uint32_t i = 0; i < n; i++)
		v[i] = next_string(p, end);
	return v;
}

static void set_caps(uint64_t permitted, uint64_t effective)
{
	struct __user_cap_header_struct h = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct d[2] = {
		{ (uint32_t)effective, (uint32_t)permitted, 0 },
		{ (uint32_t)(effective >> 32), (uint32_t)(permitted >> 32), 0 },
	};
	if (syscall(SYS_capset, &h, d) < 0)
		fail(MSTAGE_SHIM_CAPS, errno);
}

static uint64_t permitted_caps(void)
{
	struct __user_cap_header_struct h = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct d[2];
	if (syscall(SYS_capget, &h, d) < 0)
		fail(MSTAGE_SHIM_CAPS, errno);
	return d[0].permitted | (uint64_t)d[1].permitted << 32;
}

static void become(const struct mstage_shim_order *o, const gid_t *groups)
{
	for (int fd = 0; fd < 3; fd++)
		if (o->chown_stdio & (1U << fd) && fchown(fd, o->uid, (gid_t)-1) < 0 && errno != EPERM && errno != EROFS)
			fail(MSTAGE_SHIM_USER, errno);
	if (o->set_groups && setgroups(o->groups, groups) < 0)
		fail(MSTAGE_SHIM_USER, errno);
	if (setresgid(o->gid, o->gid, o->gid) < 0)
		fail(MSTAGE_SHIM_USER, errno);
	if (prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0) < 0 || setresuid(o->uid, o->uid, o->uid) < 0)
		fail(MSTAGE_SHIM_USER, errno);
	if (prctl(PR_SET_KEEPCAPS, 0, 0, 0, 0) < 0)
		fail(MSTAGE_SHIM_USER, errno);
}

// confine loads the filter and gives up what only that needed. A user other
// than root keeps nothing, as with docker; the bounding set stays docker's, so
// that programs with the setuid bit or file capabilities work.
static void confine(const struct mstage_shim_order *o, struct sock_filter *filter)
{
	const uint64_t admin = UINT64_C(1) << CAP_SYS_ADMIN;
	struct sock_fprog prog = { (unsigned short)o->filter, filter };
	uint64_t caps = permitted_caps();
	set_caps(caps, caps);
	if (prctl(PR_CAPBSET_DROP, CAP_SYS_ADMIN, 0, 0, 0) < 0)
		fail(MSTAGE_SHIM_CAPS, errno);
	// Disabling speculation for the command would cost more than the filter
	// gains: docker's runtime asks for this flag too.
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW, &prog) < 0)
		fail(MSTAGE_SHIM_SECCOMP, errno);
	caps = o->uid == 0 ? caps & ~admin : 0;
	set_caps(caps, caps);
}

// enter changes to the command's directory and makes what is missing of it, as
// runc does: an image may name a directory that it has not, or has no longer.
static void enter(char *dir)
{
	if (chdir(dir) == 0)
		return;
	if (errno != ENOENT)
		fail(MSTAGE_SHIM_CHDIR, errno);
	for (char *p = dir + 1;; p++) {
		char c = *p;
		if (c != '/' && c != '\0')
			continue;
		*p = '\0';
		if (mkdir(dir, 0755) < 0 && errno != EEXIST)
			fail(MSTAGE_SHIM_CHDIR, errno);
		*p = c;
		if (c == '\0')
			break;
	}
	if (chdir(dir) < 0)
		fail(MSTAGE_SHIM_CHDIR, errno);
}

// execute tries each directory of path, as shells do, and keeps the error that
// says most. A relative or empty element of path is skipped.
static _Noreturn void execute(const char *path, char **argv, char **envp)
{
	static char file[8192];
	struct stat st;
	int err = ENOENT;
	if (strchr(argv[0], '/') != NULL) {
		execve(argv[0], argv, envp);
		err = errno;
		fail(MSTAGE_SHIM_EXEC, err == ENOENT && stat(argv[0], &st) == 0 ? ELIBACC : err);
	}
	for (const char *p = path; argv[0][0] != '\0';) {
		size_t n = strcspn(p, ":");
		if (n > 0 && p[0] == '/' &&
		    snprintf(file, sizeof file, "%.*s/%s", (int)n, p, argv[0]) < (int)sizeof file) {
			if (stat(file, &st) == 0 && S_ISREG(st.st_mode)) {
				execve(file, argv, envp);
				if (errno != EACCES)
					fail(MSTAGE_SHIM_EXEC, errno == ENOENT ? ELIBACC : errno);
				err = EACCES;
			}
		}
		if (p[n] == '\0')
			break;
		p += n + 1;
	}
	fail(MSTAGE_SHIM_EXEC, err);
}

static _Noreturn void shim(void)
{
	for (int fd = MSTAGE_SHIM_EXE_FD; fd <= MSTAGE_SHIM_STATUS_FD; fd++)
		fcntl(fd, F_SETFD, FD_CLOEXEC);
	char *end, *p = map_order(&end);
	const struct mstage_shim_order *o = (const struct mstage_shim_order *)p;
	const gid_t *groups = (const gid_t *)(p + sizeof *o);
	struct sock_filter *filter = (struct sock_filter *)(groups + o->groups);
	p = (char *)(filter + o->filter);
	if (p > end || o->args == 0)
		fail(MSTAGE_SHIM_ORDER, EINVAL);
	char *dir = next_string(&p, end), *path = next_string(&p, end);
	char **argv = strings(o->args, &p, end);
	char **envp = strings(o->env, &p, end);

	enter(dir);
	become(o, groups);
	confine(o, filter);
	// The change of user disarmed it.
	if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0)
		fail(MSTAGE_SHIM_PDEATHSIG, errno);
	execute(path, argv, envp);
}

__attribute__((constructor)) static void mstage_sandbox_shim(int argc, char **argv)
{
	if (argc == 2 && argv != NULL && argv[0] != NULL && strcmp(argv[0], MSTAGE_SHIM_EXE) == 0 &&
	    strcmp(argv[1], MSTAGE_SHIM_ARG) == 0)
		shim();
}
