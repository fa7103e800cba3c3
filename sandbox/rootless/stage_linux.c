// The worker's way from clone(2) to the Go runtime. It runs in a constructor,
// while the process has one thread: mounting, forking and giving up identity
// are simple there and cost no start of the Go runtime.
//
// Stage 1 waits for the id maps and executes itself again, because a process
// that was unmapped at its last execve has no capabilities. Stage 2 makes the
// mounts and forks: the parent stays behind as PID 1 and reaps, the child goes
// on into Go. So the Go side is never PID 1 and waits for its own children only.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "stage_linux.h"

extern char **environ;

int mstage_is_worker = 0;

static _Noreturn void fail(uint32_t step)
{
	struct mstage_status s = { step, (int32_t)errno };
	if (write(MSTAGE_SYNC_FD, &s, sizeof s) < 0)
		_exit(125);
	_exit(125);
}

static void read_all(void *buf, size_t n)
{
	char *p = buf;
	while (n > 0) {
		ssize_t r = read(MSTAGE_SYNC_FD, p, n);
		if (r < 0 && errno == EINTR)
			continue;
		if (r <= 0)
			_exit(125); // the parent is gone: there is nobody to tell
		p += r;
		n -= (size_t)r;
	}
}

// die_with_parent arms PDEATHSIG, which every change of credentials disarms,
// and looks whether the parent died before that. getppid() can't tell: it is 0
// in a new pid namespace.
static void die_with_parent(void)
{
	struct pollfd p = { .fd = MSTAGE_SYNC_FD, .events = 0 };
	if (prctl(PR_SET_PDEATHSIG, SIGKILL, 0, 0, 0) < 0)
		fail(MSTAGE_STEP_PDEATHSIG);
	if (poll(&p, 1, 0) > 0 && (p.revents & (POLLHUP | POLLERR)))
		_exit(125);
}

static void stage_one(char **argv)
{
	char go;
	read_all(&go, 1);
	if (go == MSTAGE_GO_DIRECT)
		return;
	argv[0] = MSTAGE_ARGV0_MAPPED;
	execve("/proc/self/exe", argv, environ);
	fail(MSTAGE_STEP_REEXEC);
}

static void make_mounts(const struct mstage_setup *s, const char *state_dir)
{
	if (mount("", "/", NULL, MS_SLAVE | MS_REC, NULL) < 0)
		fail(MSTAGE_STEP_SLAVE);
	if (mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, NULL) < 0)
		fail(MSTAGE_STEP_PROC);
	if (s->state_dir_len > 0 &&
	    mount("tmpfs", state_dir, "tmpfs", MS_NOSUID, "mode=0700") < 0)
		fail(MSTAGE_STEP_TMPFS);
}

// probe_overlay tells whether builds can mount their layers, and ends.
static _Noreturn void probe_overlay(const char *state_dir)
{
	struct mstage_status ready = { MSTAGE_STEP_READY, 0 };
	if (chdir(state_dir) < 0 || mkdir("l", 0700) < 0 || mkdir("u", 0700) < 0 ||
	    mkdir("w", 0700) < 0 || mkdir("m", 0700) < 0)
		fail(MSTAGE_STEP_TMPFS);
	if (mount("overlay", "m", "overlay", 0, "lowerdir=l,upperdir=u,workdir=w,userxattr") < 0)
		fail(MSTAGE_STEP_OVERLAY);
	_exit(write(MSTAGE_SYNC_FD, &ready, sizeof ready) == sizeof ready ? 0 : 125);
}

static _Noreturn void init_loop(pid_t child, const sigset_t *all)
{
	int code = 125, sfd = signalfd(-1, all, SFD_CLOEXEC);
	if (sfd < 0)
		_exit(125);
	struct pollfd p[2] = {
		{ .fd = MSTAGE_SYNC_FD, .events = POLLRDHUP },
		{ .fd = sfd, .events = POLLIN },
	};
	for (;;) {
		struct signalfd_siginfo si;
		if (poll(p, 2, -1) < 0 && errno != EINTR)
			_exit(125);
		if (p[0].revents)
			_exit(125); // the parent died: the kernel kills the namespace
		if (!(p[1].revents & POLLIN) || read(sfd, &si, sizeof si) != sizeof si)
			continue;
		if (si.ssi_signo != SIGCHLD) {
			// What a terminal sends reaches the whole process group.
			if (si.ssi_code != SI_KERNEL)
				kill(child, (int)si.ssi_signo);
			continue;
		}
		for (;;) {
			int status;
			pid_t pid = waitpid(-1, &status, WNOHANG);
			if (pid <= 0)
				break;
			if (pid != child)
				continue;
			code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
			_exit(code);
		}
	}
}

// leave_init forks. The parent never returns.
static void leave_init(void)
{
	sigset_t all, old;
	struct mstage_status ready = { MSTAGE_STEP_READY, 0 };
	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &old);
	pid_t child = fork();
	if (child < 0)
		fail(MSTAGE_STEP_FORK);
	if (child > 0) {
		prctl(PR_SET_NAME, "mstage-init", 0, 0, 0);
		syscall(SYS_close_range, MSTAGE_SYNC_FD + 1, ~0U, 0);
		init_loop(child, &all);
	}
	sigprocmask(SIG_SETMASK, &old, NULL);
	if (write(MSTAGE_SYNC_FD, &ready, sizeof ready) != sizeof ready)
		_exit(125);
	close(MSTAGE_SYNC_FD);
}

static void stage_two(void)
{
	struct mstage_setup s;
	char state_dir[MSTAGE_PATH_MAX + 1] = { 0 };
	read_all(&s, sizeof s);
	if (s.state_dir_len > MSTAGE_PATH_MAX)
		_exit(125);
	read_all(state_dir, s.state_dir_len);
	if (setresgid(0, 0, 0) < 0 || setresuid(0, 0, 0) < 0)
		fail(MSTAGE_STEP_SETUID);
	die_with_parent();
	make_mounts(&s, state_dir);
	if (s.probe)
		probe_overlay(state_dir);
	if (s.set_group && setpgid(0, 0) < 0 && errno != EPERM)
		fail(MSTAGE_STEP_FORK);
	leave_init();
	syscall(SYS_close_range, MSTAGE_SYNC_FD + 1, ~0U, CLOSE_RANGE_CLOEXEC);
	prctl(PR_SET_NAME, "mstage-worker", 0, 0, 0);
	mstage_is_worker = 1;
}

__attribute__((constructor)) static void mstage_worker_stage(int argc, char **argv)
{
	if (argc < 1 || argv == NULL || argv[0] == NULL)
		return;
	if (strcmp(argv[0], MSTAGE_ARGV0) == 0)
		stage_one(argv);
	else if (strcmp(argv[0], MSTAGE_ARGV0_MAPPED) != 0)
		return;
	stage_two();
	// Libraries that execute this program again hand os.Args[0] on.
	argv[0] = MSTAGE_ARGV0_RUNNING;
}
