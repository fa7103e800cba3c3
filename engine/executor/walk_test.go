package executor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/mstage/mstage/engine/progress"
	"github.com/mstage/mstage/sandbox"
	"github.com/mstage/mstage/storage"
)

// meet returns a command that ends when n of its kind are running.
func meet(n int) func(context.Context, sandbox.Spec) error {
	var here atomic.Int64
	all := make(chan struct{})
	return func(ctx context.Context, _ sandbox.Spec) error {
		if here.Add(1) == int64(n) {
			close(all)
		}
		select {
		case <-all:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func TestIndependentStagesRunInParallel(t *testing.T) {
	b := newBed(t)
	both := meet(2)
	b.script(commands{"a": both, "b": both})
	b.mustRun("FROM scratch AS a\nRUN a\nFROM scratch AS b\nRUN b\nFROM scratch\nCOPY --from=a / /\nCOPY --from=b / /")
	if got := b.ran(); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("ran %q, want a and b", got)
	}
}

func TestAStageWaitsForThoseItReads(t *testing.T) {
	b := newBed(t)
	b.script(commands{
		"make": writes(map[string]string{"out": "made"}),
		"use": func(_ context.Context, s sandbox.Spec) error {
			m, err := mountAt(s, "/in")
			if err != nil {
				return err
			}
			if got, err := os.ReadFile(m.Source + "/out"); err != nil || string(got) != "made" {
				return fmt.Errorf("got %q, %w", got, err)
			}
			return nil
		},
	})
	layers := b.mustRun("FROM scratch AS a\nRUN make\nFROM a AS b\nFROM scratch\nCOPY --from=b /out /x\nRUN --mount=from=a,target=/in use")
	if got, err := os.ReadFile(b.path(layers[0], "x")); err != nil || string(got) != "made" {
		t.Errorf("got %q, %v, want what the stage made", got, err)
	}
}

func TestIdenticalStepsOfTwoStagesRunOnce(t *testing.T) {
	b := newBed(t)
	b.script(commands{"same": writes(map[string]string{"f": "x"})})
	layers := b.mustRun("FROM scratch AS a\nRUN same\nRUN a\nFROM scratch AS b\nRUN same\nRUN b\nFROM scratch\nCOPY --from=a /f /a\nCOPY --from=b /f /b")
	if got := b.ran(); !slices.Equal(got, []string{"a", "b", "same"}) {
		t.Errorf("ran %q, want same once", got)
	}
	if len(layers) != 2 {
		t.Errorf("got %d layers, want 2", len(layers))
	}
}

func TestAStageThatTheTargetDoesNotNeedIsNotRun(t *testing.T) {
	b := newBed(t)
	b.mustRun("FROM scratch AS a\nRUN a\nFROM scratch AS b\nRUN never\nFROM a\nRUN c")
	if got := b.ran(); !slices.Equal(got, []string{"a", "c"}) {
		t.Errorf("ran %q, want a and c", got)
	}
}

func TestNoMoreRunsAtOnceThanSlots(t *testing.T) {
	b := newBed(t)
	b.machine.Slots = make(chan struct{}, 2)
	var now, most atomic.Int64
	pairs := []func(context.Context, sandbox.Spec) error{meet(2), meet(2)}
	var turn atomic.Int64
	c := commands{}
	text := ""
	for i := range 4 {
		name := fmt.Sprint("run", i)
		text += fmt.Sprintf("FROM scratch AS s%d\nRUN %s\n", i, name)
		c[name] = func(ctx context.Context, s sandbox.Spec) error {
			defer now.Add(-1)
			if n := now.Add(1); n > most.Load() {
				most.Store(n)
			}
			// The first two can only end together, and so can the last two.
			return pairs[(turn.Add(1)-1)/2](ctx, s)
		}
	}
	b.script(c)
	b.mustRun(text + "FROM scratch\nCOPY --from=s0 / /\nCOPY --from=s1 / /\nCOPY --from=s2 / /\nCOPY --from=s3 / /")
	if most.Load() != 2 {
		t.Errorf("got %d at once, want 2", most.Load())
	}
}

func TestTheFirstFailureEndsTheOthersAndIsTold(t *testing.T) {
	b := newBed(t)
	running := make(chan struct{})
	b.script(commands{
		"wait": func(ctx context.Context, _ sandbox.Spec) error {
			close(running)
			<-ctx.Done()
			return context.Cause(ctx)
		},
		"fail": func(ctx context.Context, s sandbox.Spec) error {
			select {
			case <-running:
			case <-ctx.Done():
			}
			fmt.Fprintln(s.Stderr, "oh no")
			return &sandbox.ExitError{Code: 7}
		},
	})
	_, err := b.run("FROM scratch AS a\nRUN wait\nFROM scratch AS b\n\nRUN fail\nFROM scratch\nCOPY --from=a / /\nCOPY --from=b / /")
	step, ok := errors.AsType[*StepError](err)
	if !ok {
		t.Fatalf("got %v, want a *StepError", err)
	}
	exit, ok := errors.AsType[*sandbox.ExitError](err)
	if !ok || exit.Code != 7 {
		t.Errorf("got %v, want exit code 7", err)
	}
	if step.Step.Pos.Line != 5 || step.Stage.Name != "b" || err.Error() != "Dockerfile:5: RUN fail: exit code: 7" {
		t.Errorf("got %q in stage %q, want line 5 of stage b", err, step.Stage.Name)
	}
	done := b.told(progress.StepDone)
	if e := done["[b 2/2] RUN fail"]; e.Error != "exit code: 7" || e.Canceled || e.Vertex != step.Vertex {
		t.Errorf("the failed step: got %+v, want its own error and vertex %d", e, step.Vertex)
	}
	if e := done["[a 2/2] RUN wait"]; !e.Canceled {
		t.Errorf("the other step: got %+v, want it canceled", e)
	}
	if out := b.told(progress.StepOutput)["[b 2/2] RUN fail"]; string(out.Data) != "oh no\n" || out.Stream != 2 {
		t.Errorf("got output %q of stream %d, want the command's", out.Data, out.Stream)
	}
	if all, err := b.store.All(t.Context()); err != nil || len(all) != 0 {
		t.Errorf("got layers %v, %v, want none of a failed build", all, err)
	}
}

func TestAFailureOfIdenticalStepsIsThatOfTheOneThatRan(t *testing.T) {
	b := newBed(t)
	b.script(commands{"fail": func(ctx context.Context, s sandbox.Spec) error {
		fmt.Fprint(s.Stdout, "output")
		// Both stages have begun when this fails.
		for len(b.told(progress.StepStarted)) < 2 {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
		}
		return &sandbox.ExitError{Code: 1}
	}})
	for range 20 {
		_, err := b.run("FROM scratch AS a\nRUN fail\nFROM scratch AS b\nRUN fail\nFROM scratch\nCOPY --from=a / /\nCOPY --from=b / /")
		step, ok := errors.AsType[*StepError](err)
		if !ok {
			t.Fatalf("got %v, want a *StepError", err)
		}
		for _, e := range b.told(progress.StepOutput) {
			if e.Vertex != step.Vertex {
				t.Fatalf("got the failure of vertex %d, want %d, which has the output", step.Vertex, e.Vertex)
			}
		}
	}
}

func TestACancelEndsTheBuildWithItsCause(t *testing.T) {
	b := newBed(t)
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	b.script(commands{"wait": func(ctx context.Context, _ sandbox.Spec) error {
		cancel(cause)
		<-ctx.Done()
		return context.Cause(ctx)
	}})
	_, err := Run(ctx, b.options(b.plan("FROM scratch AS a\nRUN wait\nFROM scratch AS b\nRUN wait2\nFROM a\nCOPY --from=b / /")), b.machine)
	if _, ok := errors.AsType[*StepError](err); ok || !errors.Is(err, cause) {
		t.Errorf("got %v, want the cause and no step", err)
	}
	if e := b.told(progress.StepDone)["[a 2/2] RUN wait"]; !e.Canceled {
		t.Errorf("got %+v, want the step canceled", e)
	}
}

const threeSteps = "FROM scratch\nRUN one\nWORKDIR /w\nCOPY f /f\n"

func TestStepsOfTheCacheAreNotRun(t *testing.T) {
	b := newBed(t)
	b.file("f", "x")
	first := b.mustRun(threeSteps)
	second := b.mustRun(threeSteps)
	if !slices.EqualFunc(first, second, func(x, y storage.Layer) bool { return x.ID == y.ID && x.Identity == y.Identity }) {
		t.Errorf("got layers %v, want %v again", second, first)
	}
	if got := b.ran(); !slices.Equal(got, []string{"one"}) {
		t.Errorf("ran %q, want one once", got)
	}
	for title, e := range b.told(progress.StepDone) {
		if !e.Cached {
			t.Errorf("%s: got done, want cached", title)
		}
	}
	b.noCache = true
	b.mustRun(threeSteps)
	if got := b.ran(); len(got) != 2 {
		t.Errorf("without the cache: ran %q, want one again", got)
	}
}

func TestAChangeInvalidatesWhatComesAfterIt(t *testing.T) {
	b := newBed(t)
	b.file("f", "x")
	b.file("g", "x")
	const text = "FROM scratch\nRUN before\nCOPY f /f\nRUN after"
	b.mustRun(text)
	b.file("g", "not copied")
	b.mustRun(text)
	if got := len(b.ran()); got != 2 {
		t.Errorf("a file that is not copied: got %d commands in all, want 2", got)
	}
	b.file("f", "y")
	b.mustRun(text)
	if got := b.ran(); !slices.Equal(got, []string{"after", "after", "before"}) {
		t.Errorf("ran %q, want after twice and before once", got)
	}
	b.file("f", "x")
	b.mustRun(text)
	if got := len(b.ran()); got != 3 {
		t.Errorf("the first content again: got %d commands in all, want 3", got)
	}
}

func TestARecordWhoseLayerIsGoneIsAMiss(t *testing.T) {
	b := newBed(t)
	b.file("f", "x")
	first := b.mustRun(threeSteps)
	must(t, b.store.Remove(t.Context(), first[0].ID, first[2].ID))
	second := b.mustRun(threeSteps)
	if second[0].ID == first[0].ID || second[1].ID != first[1].ID || second[2].ID == first[2].ID {
		t.Errorf("got layers %v, want new ones for the first and the last of %v", second, first)
	}
	if got := len(b.ran()); got != 2 {
		t.Errorf("got %d commands, want the RUN twice", got)
	}
}

func TestProbeTellsOnlyAFullHit(t *testing.T) {
	b := newBed(t)
	b.file("f", "x")
	probe := func() ([]Result, bool) {
		t.Helper()
		results, hit, err := Probe(t.Context(), b.options(b.plan(threeSteps+"RUN last")))
		must(t, err)
		return results, hit
	}
	if _, hit := probe(); hit || len(b.events) != 0 {
		t.Errorf("an empty cache: got hit %t and %d events, want a silent miss", hit, len(b.events))
	}
	b.mustRun(threeSteps)
	if _, hit := probe(); hit || len(b.events) != 0 {
		t.Errorf("the last step missing: got hit %t and %d events, want a silent miss", hit, len(b.events))
	}
	want := b.mustRun(threeSteps + "RUN last")
	results, hit := probe()
	if !hit || len(results) != 1 || len(results[0].Layers) != 4 || results[0].Layers[3].ID != want[3].ID {
		t.Fatalf("got %v, %t, want the four layers %v", results, hit, want)
	}
	wantTitles := []string{"[2/5] RUN one", "[3/5] WORKDIR /w", "[4/5] COPY f /f", "[5/5] RUN last"}
	if got := slices.Sorted(maps.Keys(b.told(progress.StepDone))); !slices.Equal(got, wantTitles) {
		t.Errorf("told %q, want %q", got, wantTitles)
	}
	if got := len(b.ran()); got != 2 {
		t.Errorf("ran %d commands, want none by a probe", got)
	}
}

func TestProbeTellsWhatIsWrongWithTheContext(t *testing.T) {
	b := newBed(t)
	b.file("file.txt", "x")
	_, _, err := Probe(t.Context(), b.options(b.plan("FROM scratch\nCOPY fiel.txt /")))
	fault, ok := errors.AsType[*FaultError](err)
	if !ok || fault.Hint != `did you mean "file.txt"?` {
		t.Errorf("got %v, want a fault with a suggestion", err)
	}
}

func TestACopyIsAHitWhenAStageThatRanAgainMadeTheSameBytes(t *testing.T) {
	b := newBed(t)
	same := writes(map[string]string{"out": "same", "log": "1"})
	b.script(commands{"v1": same, "v2": writes(map[string]string{"out": "same", "log": "2"}), "v3": writes(map[string]string{"out": "other"})})
	text := func(v string) string {
		return "FROM scratch AS a\nRUN " + v + "\nFROM scratch\nCOPY --from=a /out /out\nRUN after"
	}
	first := b.mustRun(text("v1"))
	second := b.mustRun(text("v2"))
	if first[0].ID != second[0].ID || first[1].ID != second[1].ID {
		t.Errorf("got layers %v, want %v again", second, first)
	}
	third := b.mustRun(text("v3"))
	if third[0].ID == first[0].ID {
		t.Error("other bytes: got the same layer, want another")
	}
	if got := b.ran(); !slices.Equal(got, []string{"after", "after", "v1", "v2", "v3"}) {
		t.Errorf("ran %q, want after again only for other bytes", got)
	}
	if e := b.told(progress.StepDone)["[stage-1 2/3] COPY --from=a /out /out"]; e.Cached {
		t.Error("other bytes: told as cached")
	}
}

func TestAnImageThatIsGoneFailsItsStage(t *testing.T) {
	b := newBed(t)
	img := storage.Image{ID: storage.DigestBytes([]byte("i")), Config: []byte(`{}`), Layers: []storage.Layer{{ID: "gone", Identity: "x"}}}
	must(t, b.store.Index.PutImage(t.Context(), img, "docker.io/library/base:latest"))
	_, err := b.run("FROM scratch\nCOPY --from=base /x /y")
	if !errors.Is(err, storage.ErrNotFound) || !strings.HasPrefix(err.Error(), "Dockerfile:2: COPY") {
		t.Errorf("got %v, want ErrNotFound with the line", err)
	}
}
