package worker_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/quick"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/engine/dockerfile"
	"github.com/mstage/mstage/engine/plan"
	"github.com/mstage/mstage/engine/progress"
	"github.com/mstage/mstage/engine/worker"
)

// fakeWorker is a worker process that is a goroutine.
type fakeWorker struct {
	*os.File // the client's end
	over     chan struct{}
	notice   string
}

func (p fakeWorker) Notice() string { return p.notice }

func (p fakeWorker) Kill() error { return p.Close() }

func (p fakeWorker) Wait() error { <-p.over; return nil }

// launcher starts a goroutine for each worker.
type launcher struct {
	t      *testing.T
	serve  func(s *worker.Server, conn *os.File)
	err    error
	notice string
	asked  worker.LaunchOptions
}

func (l *launcher) Launch(o worker.LaunchOptions) (worker.Process, error) {
	l.asked = o
	if l.err != nil {
		return nil, l.err
	}
	client, server := socketpair(l.t)
	streams := duplicate(l.t, o.Streams) // the process's own, as after fork
	l.asked.Streams = nil
	p := fakeWorker{File: client, over: make(chan struct{}), notice: l.notice}
	go func() {
		defer close(p.over)
		defer server.Close()
		s, err := worker.NewServer(server, streams)
		if err != nil {
			l.t.Error(err)
			return
		}
		l.serve(s, server)
	}()
	return p, nil
}

// newServer is a worker's end to which no open files come.
func newServer(t *testing.T, conn *os.File) *worker.Server {
	t.Helper()
	_, streams := socketpair(t)
	s, err := worker.NewServer(conn, streams)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func duplicate(t *testing.T, f *os.File) *os.File {
	t.Helper()
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), f.Name())
}

func socketpair(t *testing.T) (client, server *os.File) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fds[0]), "client"), os.NewFile(uintptr(fds[1]), "server")
}

// collect is a sink that keeps events.
type collect struct {
	mu     sync.Mutex
	events []progress.Event
}

func (c *collect) Send(e progress.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events = append(c.events, e)
}

// fill sets every field of a value to something, so that one that does not cross
// is noticed.
func fill(v reflect.Value, n *int64) {
	*n++
	switch v.Kind() { //nolint:exhaustive // the kinds that jobs have
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fill(v.Elem(), n)
	case reflect.Struct:
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() && v.Type().Field(i).Tag.Get("json") != "-" {
				fill(v.Field(i), n)
			}
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		fill(v.Index(0), n)
		fill(v.Index(1), n)
	case reflect.Array:
		for i := range v.Len() {
			fill(v.Index(i), n)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
		fill(key, n)
		fill(value, n)
		v.SetMapIndex(key, value)
	case reflect.String:
		v.SetString(fmt.Sprintf("value <%d> & ü\n", *n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64, reflect.Int32:
		v.SetInt(*n)
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(uint64(*n % 256))
	}
}

// jobs are one of each kind with every field set.
func jobs() map[string]worker.Job {
	all := map[string]worker.Job{}
	kinds := reflect.TypeFor[worker.Job]()
	var n int64
	for i := range kinds.NumField() {
		if kinds.Field(i).Type.Kind() != reflect.Pointer {
			continue
		}
		job := worker.Job{Root: "/root", Version: worker.Version}
		fill(reflect.ValueOf(&job).Elem().Field(i), &n)
		all[kinds.Field(i).Name] = job
	}
	return all
}

func TestEveryFieldOfEveryJobCrosses(t *testing.T) {
	all := jobs()
	if len(all) < 6 {
		t.Fatalf("got %d kinds of jobs, want 6 or more", len(all))
	}
	for kind, want := range all {
		t.Run(kind, func(t *testing.T) {
			var got worker.Job
			l := &launcher{t: t, serve: func(s *worker.Server, _ *os.File) {
				var err error
				if got, err = s.Job(); err != nil {
					t.Error(err)
				}
				if err := s.Report(worker.Report{Done: &worker.Result{}}); err != nil {
					t.Error(err)
				}
			}}
			if _, err := worker.Call(t.Context(), l, want, worker.Caller{Sink: &collect{}}); err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
			asked := worker.LaunchOptions{Terminal: kind == "Run" || kind == "Unshare", NoStore: kind == "Unshare"}
			if l.asked != asked {
				t.Errorf("asked for %+v, want %+v", l.asked, asked)
			}
		})
	}
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestResultsAndFailuresCrossWhole(t *testing.T) {
	var n int64
	for name, kind := range map[string]worker.Report{"done": {Done: &worker.Result{}}, "failure": {Failure: &worker.Failure{}}, "event": {Event: &progress.Event{}}} {
		for _, field := range reflect.ValueOf(kind).Fields() {
			if !field.IsNil() {
				fill(field.Elem(), &n)
			}
		}
		var got worker.Report
		if err := json.Unmarshal(encode(t, kind), &got); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got, kind) {
			t.Errorf("%s: got  %+v\nwant %+v", name, got, kind)
		}
	}
}

func TestAnyTextOfARunCrosses(t *testing.T) {
	same := func(args, env []string, data []byte, limit int64, mode uint32) bool {
		for i := range args {
			args[i] = strings.ToValidUTF8(args[i], "") // the parser lets nothing else through
		}
		for i := range env {
			env[i] = strings.ToValidUTF8(env[i], "")
		}
		want := worker.Job{Build: &worker.Build{
			Plan: plan.Plan{Stages: []plan.Stage{{Steps: []plan.Step{{Run: &plan.Run{
				Args: args, Env: env, Ulimits: []plan.Ulimit{{Soft: limit, Hard: -1}}, Mounts: []plan.Mount{{Mode: mode, Type: dockerfile.MountCache}},
			}}}}}},
			Secrets: map[string][]byte{"s": data},
		}}
		var got worker.Job
		if err := json.Unmarshal(encode(t, want), &got); err != nil {
			return false
		}
		return reflect.DeepEqual(got.Build.Plan.Stages, want.Build.Plan.Stages) && bytes.Equal(got.Build.Secrets["s"], data)
	}
	if err := quick.Check(same, nil); err != nil {
		t.Error(err)
	}
}

func TestAJobOfAnotherVersionIsRefused(t *testing.T) {
	client, server := socketpair(t)
	defer server.Close()
	fmt.Fprintf(client, `{"version": %d, "prune": {}}`, worker.Version+1)
	client.Close()
	_, err := newServer(t, server).Job()
	if want := fmt.Sprintf("job of protocol %d, this worker speaks %d", worker.Version+1, worker.Version); err == nil || err.Error() != want {
		t.Errorf("got %v, want %q", err, want)
	}
}

func TestWhatIsNoJobIsAnError(t *testing.T) {
	for name, text := range map[string]string{"nothing": "", "half a job": `{"version": 1, "bui`, "no JSON": "hello"} {
		client, server := socketpair(t)
		fmt.Fprint(client, text)
		client.Close()
		if _, err := newServer(t, server).Job(); err == nil {
			t.Errorf("%s: got no error", name)
		}
		server.Close()
	}
}

func TestEventsComeBeforeTheAnswerAndWhole(t *testing.T) {
	big := bytes.Repeat([]byte{0, 0xff, '\n'}, 1<<20)
	l := &launcher{t: t, serve: func(s *worker.Server, _ *os.File) {
		_, _ = s.Job()
		s.Send(progress.Event{Kind: progress.StepOutput, Vertex: 1, Data: big})
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Go(func() {
				for range 50 {
					s.Send(progress.Event{Kind: progress.StepOutput, Vertex: i + 2, Data: []byte("line\n")})
				}
			})
		}
		wg.Wait()
		_ = s.Report(worker.Report{Done: &worker.Result{ExitCode: 42}})
	}}
	sink := &collect{}
	res, err := worker.Call(t.Context(), l, worker.Job{}, worker.Caller{Sink: sink})
	if err != nil || res.ExitCode != 42 {
		t.Fatalf("got %+v, %v, want code 42", res, err)
	}
	if len(sink.events) != 401 || !bytes.Equal(sink.events[0].Data, big) {
		t.Errorf("got %d events, the first of %d bytes, want 401 and %d", len(sink.events), len(sink.events[0].Data), len(big))
	}
}

func TestAFailureIsTheErrorOfTheCall(t *testing.T) {
	want := worker.Failure{Message: "m", Hint: "h", Code: 3, Rendered: "r", Vertex: 2, Pos: &dockerfile.Position{File: "f", Line: 1}}
	l := &launcher{t: t, serve: func(s *worker.Server, _ *os.File) {
		_, _ = s.Job()
		_ = s.Report(worker.Report{Failure: &want})
	}}
	_, err := worker.Call(t.Context(), l, worker.Job{}, worker.Caller{Sink: &collect{}})
	got, ok := errors.AsType[*worker.Failure](err)
	if !ok || !reflect.DeepEqual(*got, want) || err.Error() != "m" {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestAWorkerThatDiesWithoutAnAnswerIsAnError(t *testing.T) {
	for name, serve := range map[string]func(s *worker.Server, conn *os.File){
		"before the job":    func(*worker.Server, *os.File) {},
		"after the job":     func(s *worker.Server, _ *os.File) { _, _ = s.Job() },
		"after an event":    func(s *worker.Server, _ *os.File) { _, _ = s.Job(); s.Send(progress.Event{}) },
		"in half an answer": func(s *worker.Server, conn *os.File) { _, _ = s.Job(); fmt.Fprint(conn, `{"done": {`) },
		"with other words":  func(s *worker.Server, conn *os.File) { _, _ = s.Job(); fmt.Fprint(conn, "panic: oh no\n") },
	} {
		t.Run(name, func(t *testing.T) {
			_, err := worker.Call(t.Context(), &launcher{t: t, serve: serve}, jobs()["Build"], worker.Caller{Sink: &collect{}})
			if err == nil || !strings.Contains(err.Error(), "the worker process ended without an answer") {
				t.Errorf("got %v, want the worker's end", err)
			}
		})
	}
}

func TestAWorkerThatCantBeStartedIsAnError(t *testing.T) {
	broken := errors.New("no namespaces")
	if _, err := worker.Call(t.Context(), &launcher{t: t, err: broken}, worker.Job{}, worker.Caller{Sink: &collect{}}); !errors.Is(err, broken) {
		t.Errorf("got %v, want the launcher's error", err)
	}
}

func TestCancelAndSizesReachTheWorker(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	resize := make(chan [2]uint16)
	var got []worker.Control
	l := &launcher{t: t, serve: func(s *worker.Server, _ *os.File) {
		_, _ = s.Job()
		for range 3 {
			c, err := s.Control()
			if err != nil {
				t.Error(err)
				return
			}
			got = append(got, c)
		}
		_ = s.Report(worker.Report{Failure: &worker.Failure{Message: "canceled"}})
	}}
	go func() {
		resize <- [2]uint16{24, 80}
		resize <- [2]uint16{50, 132}
		stop()
	}()
	_, err := worker.Call(ctx, l, worker.Job{Run: &worker.Run{}}, worker.Caller{Sink: &collect{}, Resize: resize})
	if err == nil || err.Error() != "canceled" {
		t.Errorf("got %v, want the answer of the canceled worker", err)
	}
	if len(got) != 3 || got[0].Resize == nil || *got[0].Resize != [2]uint16{24, 80} || got[1].Resize == nil || *got[1].Resize != [2]uint16{50, 132} || !got[2].Cancel {
		t.Errorf("got %+v, want two sizes and a cancel", got)
	}
}

func TestAWorkerSeesTheEndOfItsCaller(t *testing.T) {
	client, server := socketpair(t)
	defer server.Close()
	s := newServer(t, server)
	client.Close()
	if _, err := s.Control(); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want io.EOF", err)
	}
	s.Send(progress.Event{}) // must neither block nor end the process
	if err := s.Report(worker.Report{Done: &worker.Result{}}); err == nil {
		t.Error("an answer to nobody: got no error")
	}
}

func TestWhatTheHostKeepsTheWorkerFromIsTold(t *testing.T) {
	l := &launcher{t: t, notice: "one owner only", serve: func(s *worker.Server, _ *os.File) {
		_, _ = s.Job()
		_ = s.Report(worker.Report{Done: &worker.Result{}})
	}}
	sink := &collect{}
	if _, err := worker.Call(t.Context(), l, worker.Job{}, worker.Caller{Sink: sink}); err != nil {
		t.Fatal(err)
	}
	if len(sink.events) != 1 || sink.events[0].Kind != progress.Warning || sink.events[0].Message != "one owner only" {
		t.Errorf("got %+v, want the warning", sink.events)
	}
}
