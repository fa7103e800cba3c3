package integration

import (
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/mstage/mstage/engine/progress"
)

// ended waits for a command that was begun and returns its exit code, -1 when a
// signal ended it.
func (v *victim) ended() int {
	v.t.Helper()
	timeout := time.After(endOfProcesses)
	for {
		select {
		case _, open := <-v.events:
			if open {
				continue
			}
			_ = v.cmd.Wait() // its code says what there is to say
			return v.cmd.ProcessState.ExitCode()
		case <-timeout:
			v.t.Fatalf("still there after %s:\n%s", endOfProcesses, v.log.String())
		}
	}
}

func (v *victim) signal(sig os.Signal) {
	v.t.Helper()
	if err := v.cmd.Process.Signal(sig); err != nil {
		v.t.Fatal(err)
	}
}

func TestTheFirstSignalCancelsCleanly(t *testing.T) {
	for name, c := range map[string]struct {
		signal     os.Signal
		run        string
		wantCode   int
		wantReason string
	}{
		"SIGINT in a RUN":                       {syscall.SIGINT, "echo here; sleep 600", 130, "interrupt"},
		"SIGTERM in a RUN":                      {syscall.SIGTERM, "echo here; sleep 600", 143, ""},
		"SIGINT in a RUN that ignores signals":  {syscall.SIGINT, "trap '' INT TERM HUP; echo here; sleep 600; sleep 600", 130, ""},
		"SIGINT in a RUN that has made orphans": {syscall.SIGINT, "(setsid sleep 600 &) ; echo here; sleep 600", 130, ""},
	} {
		t.Run(name, func(t *testing.T) {
			s := newBusyboxStore(t)
			s.ownBinary()
			s.write("ctx/Dockerfile", "FROM busybox\nRUN echo first >/first\nRUN "+c.run+"\n")
			v := s.begin("build", "--progress", "json", "-t", "never", "ctx")
			if !runPrints("here")(v) {
				t.Fatalf("ended early:\n%s", v.log.String())
			}
			v.signal(c.signal)
			if code := v.ended(); code != c.wantCode {
				t.Errorf("exit code %d, want %d\n%s", code, c.wantCode, v.log.String())
			}
			if !strings.Contains(v.log.String(), c.wantReason) {
				t.Errorf("no %q in the output:\n%s", c.wantReason, v.log.String())
			}
			_, pidNS := v.worker()
			s.nothingLeft(pidNS)
			if out := s.mustRun("images", "-q", "--format", "{{.Repository}}"); strings.Contains(out, "never") {
				t.Errorf("the image of a cancelled build is there:\n%s", out)
			}
			s.sound()
		})
	}
}

func TestACancelledBuildKeepsWhatWasDone(t *testing.T) {
	s := newBusyboxStore(t)
	s.ownBinary()
	s.write("ctx/Dockerfile", "FROM busybox\nRUN echo first >/first\nRUN echo here; sleep 600\n")
	v := s.begin("build", "--progress", "json", "ctx")
	if !runPrints("here")(v) {
		t.Fatalf("ended early:\n%s", v.log.String())
	}
	v.signal(syscall.SIGINT)
	v.ended()
	s.write("ctx/Dockerfile", "FROM busybox\nRUN echo first >/first\nRUN echo second\n")
	v = s.begin("build", "--progress", "json", "ctx")
	var cached []bool
	v.await(func(e progress.Event) bool {
		if e.Kind == progress.StepDone {
			cached = append(cached, e.Cached)
		}
		return false
	})
	if len(cached) < 3 || !cached[1] || cached[2] {
		t.Errorf("cached steps %v, want that the second is and the third is not", cached)
	}
	if code := v.ended(); code != 0 {
		t.Errorf("exit code %d, want 0", code)
	}
}

func TestTheSecondSignalKills(t *testing.T) {
	s := newBusyboxStore(t)
	s.ownBinary()
	s.write("ctx/Dockerfile", "FROM busybox\nRUN echo here; sleep 600\n")
	v := s.begin("build", "--progress", "json", "ctx")
	if !runPrints("here")(v) {
		t.Fatalf("ended early:\n%s", v.log.String())
	}
	// A worker that is stopped can't cancel anything.
	pid, pidNS := v.worker()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	for _, p := range children(t, pid) {
		if err := syscall.Kill(p, syscall.SIGSTOP); err != nil {
			t.Fatal(err)
		}
	}
	// Two that are pending at once count as one: the command gets them until it ends.
	go func() {
		tick := time.NewTicker(pollEvery)
		defer tick.Stop()
		for range tick.C {
			if v.cmd.Process.Signal(syscall.SIGINT) != nil {
				return
			}
		}
	}()
	if code := v.ended(); code != -1 && code != 130 {
		t.Errorf("exit code %d, want the end by SIGINT", code)
	}
	s.nothingLeft(pidNS)
	s.mustRun("build", "-q", "-f", s.write("Dockerfile", "FROM busybox\nRUN true\n"), "ctx")
	s.sound()
}
