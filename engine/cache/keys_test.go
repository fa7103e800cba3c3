package cache_test

import (
	"maps"
	"testing"

	"github.com/mstage/mstage/engine/cache"
	"github.com/mstage/mstage/engine/dockerfile"
	"github.com/mstage/mstage/engine/plan"
	"github.com/mstage/mstage/storage"
)

// id is some identity.
func id(s string) storage.Digest { return storage.DigestBytes([]byte(s)) }

// runStep is a RUN with everything that its key may depend on.
func runStep() *plan.Step {
	from := 3
	return &plan.Step{
		Title: "RUN x", Number: 2, Total: 5, Pos: dockerfile.Position{File: "Dockerfile", Line: 4}, Needs: []int{3},
		Run: &plan.Run{
			Args: []string{"/bin/sh", "-c", "x"}, Env: []string{"A=1", "HTTP_PROXY=p"}, KeyEnv: []string{"A=1"}, Dir: "/w", User: "u",
			Mounts: []plan.Mount{
				{Type: dockerfile.MountBind, From: plan.Source{Stage: &from}, Source: "/s", Target: "/t", ReadOnly: true, Mode: 0o755},
				{Type: dockerfile.MountSecret, ID: "token", Target: "/run/secrets/token", Mode: 0o400},
			},
			Files: []plan.File{{Name: "E", Data: "#!x"}}, Network: "default", ShmBytes: 64, Ulimits: []plan.Ulimit{{Name: "nofile", Soft: 1, Hard: 2}},
		},
	}
}

// inputs are what the RUN reads.
func inputs() cache.Inputs {
	return cache.Inputs{Chain: id("chain"), Mounts: []storage.Digest{id("mount"), ""}}
}

func TestTheKeyOfARunChangesWithWhatItsResultDependsOn(t *testing.T) {
	other := 7
	type change func(s *plan.Step, platform *string, in *cache.Inputs)
	changes := map[string]change{
		"an argument":                func(s *plan.Step, _ *string, _ *cache.Inputs) { s.Run.Args[2] = "y" },
		"one argument less":          func(s *plan.Step, _ *string, _ *cache.Inputs) { s.Run.Args = []string{"/bin/sh", "-c x"} },
		"a variable":                 func(s *plan.Step, _ *string, _ *cache.Inputs) { s.Run.KeyEnv[0] = "A=2" },
		"one more variable":          func(s *plan.Step, _ *string, _ *cache.Inputs) { s.Run.KeyEnv = append(s.Run.KeyEnv, "B=") },
		"the working directory":      func(s *plan.Step, _ *string, _ *cache.Inputs) { s.Run.Dir = "/" },
		"the user":                   func(s *plan.Step, _ *string, _ *cache.Inputs) { s.Run.User = "" },
		"the network":                func(s *plan.Step, _ *string, _ *cache.Inputs) { s.Run.Network = "none" },
		"the size of /dev/shm":       func(s *plan.Step, _ *string, _ *cache.Inputs) { s.Run.ShmBytes = 65 },
		"a ulimit":                   func(s *plan.Step, _ *string, _ *cache.Inputs) { s.Run.Ulimits[0].Hard = 3 },
		"a here-document":            func(s *plan.Step, _ *string, _ *cache.Inputs) { s.Run.Files[0].Data = "#!y" },
		"a mount's target":           func(s *plan.Step, _ *string, _ *cache.Inputs) { s.Run.Mounts[0].Target = "/u" },
		"a mount's source":           func(s *plan.Step, _ *string, _ *cache.Inputs) { s.Run.Mounts[0].Source = "/v" },
		"whether a mount is written": func(s *plan.Step, _ *string, _ *cache.Inputs) { s.Run.Mounts[0].ReadOnly = false },
		"one mount less":             func(s *plan.Step, _ *string, _ *cache.Inputs) { s.Run.Mounts = s.Run.Mounts[:1] },
		"a secret's ID":              func(s *plan.Step, _ *string, _ *cache.Inputs) { s.Run.Mounts[1].ID = "other" },
		"the platform":               func(_ *plan.Step, p *string, _ *cache.Inputs) { *p = "linux/arm64" },
		"the layers below":           func(_ *plan.Step, _ *string, in *cache.Inputs) { in.Chain = id("other") },
		"what a mount shows":         func(_ *plan.Step, _ *string, in *cache.Inputs) { in.Mounts[0] = id("other") },
	}
	key := func(c change) storage.Digest {
		s, platform, in := runStep(), "linux/amd64", inputs()
		if c != nil {
			c(s, &platform, &in)
		}
		return cache.StepKey(s, platform, in)
	}
	seen := map[storage.Digest]string{key(nil): "nothing"}
	for name, c := range changes {
		k := key(c)
		if before, ok := seen[k]; ok {
			t.Errorf("a change of %s: got the key of %s, want another", name, before)
		}
		seen[k] = name
	}
	for name, c := range map[string]change{
		"a proxy variable": func(s *plan.Step, _ *string, _ *cache.Inputs) {
			s.Run.Env = []string{"A=1", "HTTP_PROXY=q", "http_proxy=q"}
		},
		"the number of a mount's stage": func(s *plan.Step, _ *string, _ *cache.Inputs) { s.Run.Mounts[0].From.Stage = &other },
		"an image for a stage":          func(s *plan.Step, _ *string, _ *cache.Inputs) { s.Run.Mounts[0].From = plan.Source{Image: &other} },
		"the title":                     func(s *plan.Step, _ *string, _ *cache.Inputs) { s.Title = "RUN  x" },
		"the place":                     func(s *plan.Step, _ *string, _ *cache.Inputs) { s.Pos.Line, s.Number, s.Total, s.Needs = 9, 8, 9, nil },
	} {
		if key(c) != key(nil) {
			t.Errorf("a change of %s: got another key, want the same", name)
		}
	}
}

func TestARunsKeyLeavesItsStepAsItWas(t *testing.T) {
	s := runStep()
	cache.StepKey(s, "linux/amd64", inputs())
	if s.Run.Env == nil || s.Run.Mounts[0].From.Stage == nil {
		t.Errorf("got %+v, want the step unchanged", s.Run)
	}
}

// copyStep is a COPY --from.
func copyStep() *plan.Copy {
	from := 1
	return &plan.Copy{From: plan.Source{Stage: &from}, Sources: []string{"a", "b"}, Dest: "/d/", Chown: "u", Chmod: "644"}
}

func TestTheKeysOfACopyChangeWithWhatItsResultDependsOn(t *testing.T) {
	other := 2
	keys := func(change func(c *plan.Copy)) map[string]storage.Digest {
		c := copyStep()
		change(c)
		return map[string]storage.Digest{
			"step":     cache.StepKey(&plan.Step{Copy: c}, "linux/amd64", cache.Inputs{Chain: id("chain"), Source: id("source")}),
			"shape":    cache.ShapeKey(c, id("chain")),
			"content":  cache.ContentKey(c, id("chain"), id("content")),
			"identity": cache.CopyIdentity(c, id("content")),
		}
	}
	want := keys(func(*plan.Copy) {})
	for name, change := range map[string]func(c *plan.Copy){
		"the destination": func(c *plan.Copy) { c.Dest = "/d" },
		"the owner":       func(c *plan.Copy) { c.Chown = "" },
		"the mode":        func(c *plan.Copy) { c.Chmod = "600" },
		"a source":        func(c *plan.Copy) { c.Sources = []string{"a"} },
		"the order":       func(c *plan.Copy) { c.Sources = []string{"b", "a"} },
		"ADD for COPY":    func(c *plan.Copy) { c.Unpack = true },
		"an inline file":  func(c *plan.Copy) { c.Inline = []plan.File{{Name: "x"}} },
	} {
		for kind, k := range keys(change) {
			if k == want[kind] {
				t.Errorf("a change of %s: got the same %s key, want another", name, kind)
			}
		}
	}
	for name, change := range map[string]func(c *plan.Copy){
		"the number of the stage": func(c *plan.Copy) { c.From.Stage = &other },
		"an image for a stage":    func(c *plan.Copy) { c.From = plan.Source{Image: &other} },
	} {
		if got := keys(change); !maps.Equal(got, want) {
			t.Errorf("a change of %s: got other keys, want the same", name)
		}
	}
	seen := map[storage.Digest]bool{}
	for _, k := range want {
		seen[k] = true
	}
	if len(seen) != len(want) {
		t.Error("got one key for two purposes, want each its own")
	}
}

func TestTheKeyOfACopyDependsOnBothSides(t *testing.T) {
	s := &plan.Step{Copy: copyStep()}
	a := cache.StepKey(s, "p", cache.Inputs{Chain: id("1"), Source: id("2")})
	if cache.StepKey(s, "p", cache.Inputs{Chain: id("2"), Source: id("1")}) == a {
		t.Error("both sides exchanged: got the same key, want another")
	}
	if cache.ContentKey(s.Copy, id("1"), id("2")) == cache.ContentKey(s.Copy, id("2"), id("2")) {
		t.Error("another destination: got the same content key, want another")
	}
	if cache.ShapeKey(s.Copy, id("1")) == cache.ShapeKey(s.Copy, id("2")) {
		t.Error("another destination: got the same shape key, want another")
	}
	if cache.CopyIdentity(s.Copy, id("1")) == cache.CopyIdentity(s.Copy, id("2")) {
		t.Error("another content: got the same identity, want another")
	}
}

func TestTheKeyOfAWorkdirDependsOnPathOwnerAndLayers(t *testing.T) {
	key := func(path, user, chain string) storage.Digest {
		return cache.StepKey(&plan.Step{Workdir: &plan.Workdir{Path: path, User: user}}, "p", cache.Inputs{Chain: id(chain)})
	}
	seen := map[storage.Digest]bool{}
	for _, k := range []storage.Digest{key("/a", "", "1"), key("/b", "", "1"), key("/a", "u", "1"), key("/a", "", "2")} {
		seen[k] = true
	}
	if len(seen) != 4 {
		t.Errorf("got %d keys, want 4", len(seen))
	}
}

func TestTheIdentityOfAChainDependsOnTheOrderOfIdentitiesAlone(t *testing.T) {
	a := storage.Layer{ID: "1", Identity: id("a"), SizeBytes: 1}
	b := storage.Layer{ID: "2", Identity: id("b")}
	again := storage.Layer{ID: "3", Identity: id("a"), SizeBytes: 2, Linked: []storage.LayerID{"9"}}
	chain := func(l ...storage.Layer) storage.Digest { return cache.ChainIdentity(l) }
	if chain(a, b) == chain(b, a) {
		t.Error("another order: got the same identity, want another")
	}
	if chain(a, b) != chain(again, b) {
		t.Error("another layer of the same identity: got another one, want the same")
	}
	seen := map[storage.Digest]bool{chain(): true, chain(a): true, chain(a, a): true, chain(a, b): true}
	if len(seen) != 4 {
		t.Errorf("got %d identities of 4 chains, want 4", len(seen))
	}
	if chain(a) == a.Identity {
		t.Error("a chain of one layer: got the layer's identity, want its own")
	}
}
