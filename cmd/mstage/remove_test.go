package main

import (
	"strings"
	"testing"

	"github.com/mstage/mstage/engine"
	"github.com/mstage/mstage/engine/worker"
)

func TestAWordToRemoveIsANameOrAnImage(t *testing.T) {
	ix := newStore(t)
	const name = "docker.io/library/hello:latest"
	for word, want := range map[string]worker.RemoveTarget{
		"hello": {Image: hello.ID, Name: name}, "hello:latest": {Image: hello.ID, Name: name}, "localhost/hello:1": {Image: hello.ID, Name: "localhost/hello:1"},
		string(hello.ID): {Image: hello.ID}, hello.ID.Short(): {Image: hello.ID}, string(nameless.Sealed.ConfigDigest): {Image: nameless.ID},
	} {
		if got, err := removeTarget(t.Context(), ix, word); err != nil || got != want {
			t.Errorf("%s: got %+v, %v, want %+v", word, got, err, want)
		}
	}
}

func TestRemovingWhatIsNotThereIsAnErrorUnlessForced(t *testing.T) {
	newStore(t)
	if _, stderr, code := mstageRun("rmi", "nowhere"); code != engine.ExitNotFound || !strings.Contains(stderr, "no such image: nowhere") {
		t.Errorf("got code %d and %q, want %d", code, stderr, engine.ExitNotFound)
	}
	if stdout, stderr, code := mstageRun("rmi", "-f", "nowhere"); code != engine.ExitOK || stdout+stderr != "" {
		t.Errorf("-f: got code %d, %q and %q, want silence", code, stdout, stderr)
	}
}

func TestPruneAsksFirst(t *testing.T) {
	for answer, want := range map[string]bool{"y\n": true, "YES\n": true, " y": true, "n\n": false, "\n": false, "": false, "yep\n": false} {
		for _, all := range []bool{false, true} {
			c := cliWith(nil)
			c.stdin = strings.NewReader(answer)
			if got := c.confirm(all); got != want {
				t.Errorf("answer %q, all %t: got %t, want %t", answer, all, got, want)
			}
		}
	}
	newStore(t)
	if stdout, stderr, code := mstageRun("prune"); code != engine.ExitOK || stdout != "" || !strings.Contains(stderr, "Nothing removed: no answer") {
		t.Errorf("without an answer: got code %d, %q and %q", code, stdout, stderr)
	}
}
