// Package plugintest holds sources to the contract of pluginapi: built-in ones
// and those of other processes alike.
package plugintest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/mstage/mstage/pkg/pluginapi"
)

// Fixture is a source with examples of what it knows and what it doesn't.
type Fixture struct {
	Source pluginapi.Source
	// Known are requests that it answers. At least one.
	Known []pluginapi.Request
	// Unknown are requests that it has no answer for, hence ErrNotFound.
	Unknown []pluginapi.Request
	// Refused are requests that it answers with a *pluginapi.Error.
	Refused []pluginapi.Request
}

// Run runs every check, each with a fixture of its own from newFixture.
func Run(t *testing.T, newFixture func(t *testing.T) Fixture) {
	checks := map[string]func(*testing.T, Fixture){
		"it describes itself, always alike":                    checkDescribe,
		"it answers what it knows with exactly one kind":       checkKnown,
		"what it doesn't know is ErrNotFound":                  checkUnknown,
		"what it refuses is an Error with a message":           checkRefused,
		"odd and hostile words get an error or a right answer": checkHostile,
		"a cancelled context ends the look-up":                 checkCancelled,
		"it answers many at once as it answers one":            checkConcurrent,
		"a request stays as it was":                            checkUntouched,
		"content honours a locked digest":                      checkLocked,
		"fetch delivers content and refuses all else":          checkFetch,
	}
	for name, check := range checks {
		t.Run(name, func(t *testing.T) {
			f := newFixture(t)
			if len(f.Known) == 0 {
				t.Fatal("got a fixture without a known request, want at least one")
			}
			check(t, f)
		})
	}
}

func checkDescribe(t *testing.T, f Fixture) {
	first, err := f.Source.Describe(t.Context())
	if err != nil {
		t.Fatalf("Describe: %v", err)
	}
	if !isName(first.Name) {
		t.Errorf("got name %q, want lower-case letters, digits and dashes", first.Name)
	}
	if first.Protocol != pluginapi.Protocol {
		t.Errorf("got protocol %d, want %d", first.Protocol, pluginapi.Protocol)
	}
	if first.Summary == "" || strings.ContainsAny(first.Summary, "\r\n") {
		t.Errorf("got summary %q, want one line", first.Summary)
	}
	if len(first.Examples) == 0 {
		t.Error("got no example, want one at least")
	}
	for _, s := range first.Schemes {
		if !isName(s) {
			t.Errorf("got scheme %q, want lower-case letters, digits and dashes", s)
		}
	}
	if _, err := f.Source.Resolve(t.Context(), f.Known[0]); err != nil {
		t.Errorf("resolve %q: %v", f.Known[0].Reference, err)
	}
	again, err := f.Source.Describe(t.Context())
	if err != nil || !reflect.DeepEqual(first, again) {
		t.Errorf("got %+v, %v the second time, want %+v", again, err, first)
	}
}

// isName reports whether s can stand in plans and before a colon.
func isName(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyz0123456789-") == "" && s[0] != '-'
}

func checkKnown(t *testing.T, f Fixture) {
	d, err := f.Source.Describe(t.Context())
	if err != nil {
		t.Fatalf("Describe: %v", err)
	}
	for _, q := range f.Known {
		got, err := f.Source.Resolve(t.Context(), q)
		if err != nil {
			t.Errorf("resolve %q: %v", q.Reference, err)
			continue
		}
		if err := got.Check(q); err != nil {
			t.Error(err)
		}
		if got.Source != "" && got.Source != d.Name {
			t.Errorf("resolve %q: got source %q, want %q or none", q.Reference, got.Source, d.Name)
		}
		again, err := f.Source.Resolve(t.Context(), q)
		if err != nil || !reflect.DeepEqual(got, again) {
			t.Errorf("resolve %q again: got %+v, %v, want %+v", q.Reference, again, err, got)
		}
	}
}

func checkUnknown(t *testing.T, f Fixture) {
	for _, q := range f.Unknown {
		if got, err := f.Source.Resolve(t.Context(), q); !errors.Is(err, pluginapi.ErrNotFound) {
			t.Errorf("resolve %q: got %+v, %v, want ErrNotFound", q.Reference, got, err)
		}
	}
}

func checkRefused(t *testing.T, f Fixture) {
	for _, q := range f.Refused {
		_, err := f.Source.Resolve(t.Context(), q)
		var refusal *pluginapi.Error
		if !errors.As(err, &refusal) || refusal.Message == "" {
			t.Errorf("resolve %q: got %v, want a *pluginapi.Error", q.Reference, err)
		}
		if errors.Is(err, pluginapi.ErrNotFound) {
			t.Errorf("resolve %q: got %v, want no ErrNotFound in a refusal", q.Reference, err)
		}
	}
}

// hostile are words that no Dockerfile should hold; some can be typed, others
// are what a careless source would take for a path, a number or a format.
var hostile = []string{
	"", " ", "\x00", "\n", "\xff\xfe", "-1", "+0", "00", "0x0", "99999999999999999999", "9223372036854775807",
	".", "..", "../../etc/passwd", "/", "//", "a//b", ":", "@", ":latest", "@sha256:", "sha256:", "sha256:" + strings.Repeat("g", 64),
	"%s%s%n", "$(id)", "`id`", "; rm -rf /", "--help", "Ａ", "\u202e", "é", strings.Repeat("0", 64), strings.Repeat("a", 63),
	strings.Repeat("f", 65), strings.Repeat("a", 1<<16), strings.Repeat("a/", 1<<12), "http://[::1", "[::1]:5000/x", "scratch",
}

func checkHostile(t *testing.T, f Fixture) {
	for _, word := range hostile {
		for _, use := range []pluginapi.Use{pluginapi.UseFrom, pluginapi.UseCopy, pluginapi.UseMount} {
			q := f.Known[0]
			q.Reference, q.Use = word, use
			got, err := f.Source.Resolve(t.Context(), q)
			if err != nil {
				continue
			}
			if err := got.Check(q); err != nil {
				t.Errorf("%s %.40q: %v", use, word, err)
			}
		}
	}
	q := pluginapi.Request{Reference: f.Known[0].Reference}
	if got, err := f.Source.Resolve(t.Context(), q); err == nil {
		if err := got.Check(q); err != nil {
			t.Errorf("a request of nothing but the word: %v", err)
		}
	}
}

func checkCancelled(t *testing.T, f Fixture) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	got, err := f.Source.Resolve(ctx, f.Known[0])
	if !errors.Is(err, context.Canceled) {
		t.Errorf("resolve: got %+v, %v, want context.Canceled", got, err)
	}
	if errors.Is(err, pluginapi.ErrNotFound) {
		t.Errorf("resolve: got %v, want no ErrNotFound, or the next source would be asked", err)
	}
}

// concurrent is how many look-ups run at once: enough for the race detector.
const concurrent = 16

func checkConcurrent(t *testing.T, f Fixture) {
	want, err := f.Source.Resolve(t.Context(), f.Known[0])
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i := range concurrent {
		wg.Go(func() {
			q := f.Known[0]
			if i%2 == 1 && len(f.Unknown) > 0 {
				if _, err := f.Source.Resolve(t.Context(), f.Unknown[0]); !errors.Is(err, pluginapi.ErrNotFound) {
					t.Errorf("resolve %q: got %v, want ErrNotFound", f.Unknown[0].Reference, err)
				}
				return
			}
			if _, err := f.Source.Describe(t.Context()); err != nil {
				t.Errorf("Describe: %v", err)
			}
			got, err := f.Source.Resolve(t.Context(), q)
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("resolve %q: got %+v, %v, want %+v", q.Reference, got, err, want)
			}
		})
	}
	wg.Wait()
}

func checkUntouched(t *testing.T, f Fixture) {
	for _, q := range slices.Concat(f.Known, f.Unknown, f.Refused) {
		before := slices.Clone(q.Stages)
		got, _ := f.Source.Resolve(t.Context(), q)
		if got.Stage != nil {
			*got.Stage = -1
		}
		if !slices.Equal(before, q.Stages) {
			t.Errorf("resolve %q: got stages %v afterwards, want %v", q.Reference, q.Stages, before)
		}
	}
}

func checkLocked(t *testing.T, f Fixture) {
	for _, q := range f.Known {
		got, err := f.Source.Resolve(t.Context(), q)
		if err != nil || got.Content == nil {
			continue
		}
		q.LockedDigest = got.Content.Digest
		if again, err := f.Source.Resolve(t.Context(), q); err != nil || again.Check(q) != nil {
			t.Errorf("resolve %q locked to %s: got %+v, %v", q.Reference, q.LockedDigest, again, err)
		}
		q.LockedDigest = "sha256:" + strings.Repeat("0", 64)
		if other, err := f.Source.Resolve(t.Context(), q); err == nil {
			t.Errorf("resolve %q locked to another digest: got %+v, want an error", q.Reference, other)
		}
	}
}

func checkFetch(t *testing.T, f Fixture) {
	for _, q := range f.Known {
		got, err := f.Source.Resolve(t.Context(), q)
		if err != nil {
			t.Fatalf("resolve %q: %v", q.Reference, err)
		}
		if got.Content == nil {
			refusesFetch(t, f.Source, got)
			continue
		}
		deliversContent(t, f.Source, got)
	}
	refusesFetch(t, f.Source, pluginapi.Resolved{})
}

func refusesFetch(t *testing.T, s pluginapi.Source, r pluginapi.Resolved) {
	t.Helper()
	to := &received{}
	if err := s.Fetch(t.Context(), r, pluginapi.Selection{}, to); err == nil || err.Error() == "" {
		t.Errorf("fetch %q without content: got no error, want one that says why", r.Reference)
	}
	if to.layers+to.roots > 0 {
		t.Errorf("fetch %q without content: got something delivered", r.Reference)
	}
}

func deliversContent(t *testing.T, s pluginapi.Source, r pluginapi.Resolved) {
	t.Helper()
	to := &received{}
	if err := s.Fetch(t.Context(), r, pluginapi.Selection{}, to); err != nil {
		t.Errorf("fetch %q: %v", r.Reference, err)
	}
	if (to.roots == 1) == (to.layers > 0) || to.roots > 1 {
		t.Errorf("fetch %q: got %d layers and %d root file systems, want layers or one root", r.Reference, to.layers, to.roots)
	}
	if err := s.Fetch(t.Context(), r, pluginapi.Selection{}, &received{err: errFull}); !errors.Is(err, errFull) {
		t.Errorf("fetch %q: got %v, want the receiver's error", r.Reference, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Fetch(ctx, r, pluginapi.Selection{}, &received{}); !errors.Is(err, context.Canceled) {
		t.Errorf("fetch %q: got %v, want context.Canceled", r.Reference, err)
	}
}

var errFull = errors.New("the receiver is full")

// received counts what a Fetch delivers, several layers at once perhaps.
type received struct {
	mu            sync.Mutex
	layers, roots int // guarded by mu
	err           error
}

func (r *received) Layer(ctx context.Context, _ pluginapi.Layer, tar io.Reader) error {
	r.mu.Lock()
	r.layers++
	r.mu.Unlock()
	return r.take(ctx, tar)
}

func (r *received) RootFS(ctx context.Context, tar io.Reader) error {
	r.mu.Lock()
	r.roots++
	r.mu.Unlock()
	return r.take(ctx, tar)
}

func (r *received) take(ctx context.Context, tar io.Reader) error {
	if r.err != nil {
		return r.err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if _, err := io.Copy(io.Discard, tar); err != nil {
		return fmt.Errorf("read what was delivered: %w", err)
	}
	return nil
}
