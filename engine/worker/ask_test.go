package worker_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"

	"github.com/mstage/mstage/engine/worker"
)

// call runs one job whose worker does ask.
func call(t *testing.T, ask func(s *worker.Server), help worker.Helper) (*worker.Result, error) {
	t.Helper()
	l := &launcher{t: t, serve: func(s *worker.Server, _ *os.File) {
		_, _ = s.Job()
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				if _, err := s.Control(); err != nil {
					return
				}
			}
		})
		ask(s)
		_ = s.Report(worker.Report{Done: &worker.Result{}})
		wg.Wait()
	}}
	return worker.Call(t.Context(), l, worker.Job{}, worker.Caller{Sink: &collect{}, Help: help})
}

// take collects streams.
type take struct {
	wg  sync.WaitGroup
	mu  sync.Mutex
	got map[string][]byte // guarded by mu
}

func (k *take) stream(h worker.StreamHeader, f *os.File) {
	k.wg.Go(func() {
		defer f.Close()
		b, _ := io.ReadAll(f)
		k.mu.Lock()
		defer k.mu.Unlock()
		k.got[h.Layer] = b
	})
}

func TestStreamsReachTheOneWhoAsked(t *testing.T) {
	const asks, layers = 8, 20
	content := func(ask string, layer int) []byte {
		return bytes.Repeat([]byte(fmt.Sprintf("%s/%d ", ask, layer)), 1+layer*4000)
	}
	help := func(_ context.Context, a worker.Ask, streams *worker.Streams) worker.Answer {
		for i := range layers {
			w, err := streams.Open(worker.StreamHeader{Ask: a.ID, Layer: fmt.Sprint(i)})
			if err != nil {
				return worker.Answer{Failure: &worker.Failure{Message: err.Error()}}
			}
			_, err = w.Write(content(a.Fetch.Resolved.Reference, i))
			if err = errors.Join(err, w.Close()); err != nil {
				return worker.Answer{Failure: &worker.Failure{Message: err.Error()}}
			}
		}
		return worker.Answer{}
	}
	_, err := call(t, func(s *worker.Server) {
		var wg sync.WaitGroup
		for i := range asks {
			wg.Go(func() {
				name := fmt.Sprint("ask", i)
				k := &take{got: map[string][]byte{}}
				f := &worker.Fetch{}
				f.Resolved.Reference = name
				if _, err := s.Ask(t.Context(), worker.Ask{Fetch: f}, worker.Take{Stream: k.stream}); err != nil {
					t.Error(err)
				}
				k.wg.Wait() // an answer comes after the last stream, so none is missed
				for j := range layers {
					if got := k.got[fmt.Sprint(j)]; !bytes.Equal(got, content(name, j)) {
						t.Errorf("%s layer %d: got %d bytes, want %d", name, j, len(got), len(content(name, j)))
					}
				}
			})
		}
		wg.Wait()
	}, help)
	if err != nil {
		t.Error(err)
	}
}

func TestAReaderThatLeavesIsToldToTheWriter(t *testing.T) {
	var wrote error
	help := func(_ context.Context, a worker.Ask, streams *worker.Streams) worker.Answer {
		w, err := streams.Open(worker.StreamHeader{Ask: a.ID})
		if err != nil {
			return worker.Answer{Failure: &worker.Failure{Message: err.Error()}}
		}
		defer w.Close()
		for wrote == nil {
			_, wrote = w.Write(make([]byte, 1<<20))
		}
		return worker.Answer{Left: true, Failure: &worker.Failure{Message: wrote.Error()}}
	}
	_, err := call(t, func(s *worker.Server) {
		a, err := s.Ask(t.Context(), worker.Ask{Fetch: &worker.Fetch{}}, worker.Take{Stream: func(_ worker.StreamHeader, f *os.File) { f.Close() }})
		if err == nil || !a.Left {
			t.Errorf("got %+v, %v, want an answer that says who left", a, err)
		}
	}, help)
	if err != nil || !errors.Is(wrote, worker.ErrReaderLeft) {
		t.Errorf("got %v and a write with %v, want ErrReaderLeft", err, wrote)
	}
}

func TestAFailureAnswersAnAsk(t *testing.T) {
	help := func(context.Context, worker.Ask, *worker.Streams) worker.Answer {
		return worker.Answer{Failure: &worker.Failure{Message: "no", Hint: "try", Code: 7}}
	}
	_, err := call(t, func(s *worker.Server) {
		_, err := s.Ask(t.Context(), worker.Ask{Send: &worker.Send{}}, worker.Take{})
		f, ok := errors.AsType[*worker.Failure](err)
		if !ok || f.Message != "no" || f.Hint != "try" || f.Code != 7 {
			t.Errorf("got %v, want the failure as it was", err)
		}
	}, help)
	if err != nil {
		t.Error(err)
	}
}

func TestWithoutAHelperAnAskFails(t *testing.T) {
	_, err := call(t, func(s *worker.Server) {
		if _, err := s.Ask(t.Context(), worker.Ask{}, worker.Take{}); err == nil || !strings.Contains(err.Error(), "nobody here can help") {
			t.Errorf("got %v, want a refusal", err)
		}
	}, nil)
	if err != nil {
		t.Error(err)
	}
}

func TestAnAskEndsWithItsContextAndWithItsCaller(t *testing.T) {
	client, server := socketpair(t)
	s := newServer(t, server)
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := s.Ask(ctx, worker.Ask{}, worker.Take{}); !errors.Is(err, cause) {
		t.Errorf("got %v, want the cause", err)
	}
	done := make(chan error)
	go func() {
		_, err := s.Ask(t.Context(), worker.Ask{}, worker.Take{})
		done <- err
	}()
	client.Close()
	if _, err := s.Control(); err == nil {
		t.Error("got a control message from nobody")
	}
	if err := <-done; err == nil || !strings.Contains(err.Error(), "mstage has gone") {
		t.Errorf("got %v, want the caller's end", err)
	}
}

func TestALongHeaderIsRefused(t *testing.T) {
	help := func(_ context.Context, a worker.Ask, streams *worker.Streams) worker.Answer {
		if _, err := streams.Open(worker.StreamHeader{Ask: a.ID, Layer: strings.Repeat("x", 5000)}); err == nil {
			t.Error("got no error for a header of 5000 bytes")
		}
		return worker.Answer{}
	}
	if _, err := call(t, func(s *worker.Server) { _, _ = s.Ask(t.Context(), worker.Ask{}, worker.Take{}) }, help); err != nil {
		t.Error(err)
	}
}

func TestAnAskThatIsDroppedStillGetsItsAnswer(t *testing.T) {
	enough := make(chan struct{})
	help := func(ctx context.Context, a worker.Ask, streams *worker.Streams) worker.Answer {
		w, err := streams.Open(worker.StreamHeader{Ask: a.ID})
		if err != nil {
			return worker.Answer{Failure: &worker.Failure{Message: err.Error()}}
		}
		stop := context.AfterFunc(ctx, func() { _ = w.Close() })
		defer stop()
		close(enough)
		for err == nil { // the pipe is full soon, and nobody reads
			_, err = w.Write(make([]byte, 1<<20))
		}
		return worker.Answer{Left: errors.Is(context.Cause(ctx), worker.ErrReaderLeft), Failure: &worker.Failure{Message: "the reason"}}
	}
	_, err := call(t, func(s *worker.Server) {
		var file *os.File
		a, err := s.Ask(t.Context(), worker.Ask{Fetch: &worker.Fetch{}}, worker.Take{
			Stream: func(_ worker.StreamHeader, f *os.File) { file = f }, Enough: enough,
		})
		if err == nil || err.Error() != "the reason" || !a.Left {
			t.Errorf("got %+v, %v, want the answer of who was stopped", a, err)
		}
		file.Close()
	}, help)
	if err != nil {
		t.Error(err)
	}
}
