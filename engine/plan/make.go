package plan

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"

	"github.com/mstage/mstage/engine/dockerfile"
	"github.com/mstage/mstage/engine/fetch"
	"github.com/mstage/mstage/engine/imageconfig"
	"github.com/mstage/mstage/engine/resolve"
	"github.com/mstage/mstage/engine/stage"
	"github.com/mstage/mstage/pkg/pluginapi"
	"github.com/mstage/mstage/storage"
)

// Options are what a plan depends on besides the Dockerfile.
type Options struct {
	Platform string
	Labels   map[string]string
	// Network is the mode of RUNs that name none; "" is "default".
	Network string
	// AllowHostNetwork lets a RUN ask for --network=host by itself.
	AllowHostNetwork bool
	ShmBytes         int64
	Ulimits          []Ulimit
	// ConfigOf returns the config of what a FROM resolved to.
	ConfigOf func(ctx context.Context, r pluginapi.Resolved) (imageconfig.Config, error)
	// Images finds the images that the bindings name.
	Images storage.Images
}

// Make plans the stages of b. The error is a *dockerfile.Error when the
// Dockerfile asks for what can't be done.
func Make(ctx context.Context, b *resolve.Bindings, o Options) (*Plan, error) {
	if o.Network == "" {
		o.Network = "default"
	}
	m := &maker{
		o: o, bindings: b,
		plan:   &Plan{Version: FormatVersion, Platform: o.Platform},
		stages: map[int]int{}, images: map[string]int{}, scopes: map[int]*stage.Scope{}, depth: map[int]int{},
	}
	for _, bound := range b.Stages {
		if err := m.stage(ctx, bound); err != nil {
			return nil, err
		}
	}
	m.plan.Target = m.stages[b.Graph.Target]
	m.addLabels()
	return m.plan, nil
}

// maker builds a plan, stage by stage.
type maker struct {
	o        Options
	bindings *resolve.Bindings
	plan     *Plan
	stages   map[int]int          // index in the Dockerfile → index in plan.Stages
	images   map[string]int       // local ID and word → index in plan.Images
	scopes   map[int]*stage.Scope // by index in plan.Stages, walked to the end
	depth    map[int]int          // number of layers by index in plan.Stages
}

// stageMaker builds one stage.
type stageMaker struct {
	*maker
	ctx   context.Context //nolint:containedctx // lives as long as one call of maker.stage
	bound *resolve.BoundStage
	scope *stage.Scope
	st    *Stage
	// cmdSet says that this stage has a CMD, which ENTRYPOINT then keeps.
	cmdSet bool
	number int
	total  int
	// layers counts those of the base, too; tooDeep is the refusal of the first
	// step over MaxLayers.
	layers  int
	tooDeep error
}

// MaxLayers is how many layers an image can have. Source: overlayfs takes 500
// lower directories (OVL_MAX_STACK); one shows mount points.
const MaxLayers = 499

// addLabels puts --label on the target.
func (m *maker) addLabels() {
	if len(m.o.Labels) == 0 {
		return
	}
	c := &m.plan.Stages[m.plan.Target].Config.Config
	if c.Labels == nil {
		c.Labels = map[string]string{}
	}
	maps.Copy(c.Labels, m.o.Labels)
}

// stage plans one stage and appends it.
func (m *maker) stage(ctx context.Context, bound *resolve.BoundStage) error {
	src := bound.Node.Stage
	s := &stageMaker{maker: m, ctx: ctx, bound: bound, st: &Stage{
		Index: src.Index, Name: src.Name, Label: m.label(src), Pos: src.Pos, From: bound.Node.Base.Word.Text,
	}}
	if err := s.base(ctx); err != nil {
		return err
	}
	s.scope, s.layers = s.openScope(), s.baseLayers()
	s.number, s.total = 1, 1+countSteps(bound.Node.All())
	for _, in := range bound.Node.All() {
		if err := s.instruction(in); err != nil {
			return s.positioned(in, err)
		}
	}
	if s.tooDeep != nil {
		return s.tooDeep
	}
	m.depth[len(m.plan.Stages)] = s.layers
	s.st.Config.Config.Env = s.scope.ConfigEnv()
	m.scopes[len(m.plan.Stages)] = s.scope
	m.stages[src.Index] = len(m.plan.Stages)
	m.plan.Stages = append(m.plan.Stages, *s.st)
	return nil
}

// baseLayers is how many layers the stage starts from.
func (s *stageMaker) baseLayers() int {
	switch base := s.st.Base; {
	case base.Stage != nil:
		return s.depth[*base.Stage]
	case base.Image != nil:
		return len(s.plan.Images[*base.Image].Layers)
	default:
		return 0
	}
}

// openScope is the scope at the top of the stage.
func (s *stageMaker) openScope() *stage.Scope {
	if s.st.Base.Stage != nil {
		return s.scopes[*s.st.Base.Stage].Fork()
	}
	return s.bindings.Graph.Scope(s.st.Config.Config.Env)
}

// label is what progress shows for a stage, as docker has it.
func (m *maker) label(s *dockerfile.Stage) string {
	switch {
	case s.Name != "":
		return strings.ToLower(s.Name)
	case len(m.bindings.Graph.Nodes) == 1:
		return ""
	default:
		return fmt.Sprintf("stage-%d", s.Index)
	}
}

// countSteps counts the instructions that progress numbers.
func countSteps(ins []dockerfile.Instruction) int {
	n := 0
	for _, in := range ins {
		switch in.(type) {
		case *dockerfile.Run, *dockerfile.Copy, *dockerfile.Workdir:
			n++
		}
	}
	return n
}

// base sets what the stage starts from.
func (s *stageMaker) base(ctx context.Context) error {
	if p := s.bound.Node.Base.Platform; p != "" && !samePlatform(p, s.o.Platform) {
		word := s.bound.Node.Stage.Platform
		return s.file().Errorf(word.Pos, len(word.Text), "", "FROM --platform=%s: another platform than %s is not supported yet", p, s.o.Platform)
	}
	if s.bound.Base == nil {
		s.st.Base = Source{Scratch: true}
		s.st.Config = emptyConfig(s.o.Platform)
		return nil
	}
	src, err := s.source(ctx, s.bound.Base)
	if err != nil {
		return err
	}
	s.st.Base = src
	if src.Stage != nil {
		s.st.Config = s.plan.Stages[*src.Stage].Config.Clone()
		s.st.Config.History = nil
	} else {
		s.st.Config, err = s.o.ConfigOf(ctx, s.bound.Base.Resolved)
		if err != nil {
			return err
		}
		s.st.From = s.bound.Base.Resolved.Reference
		s.st.Config.Config.Env = withPath(s.st.Config.Config.Env)
	}
	// Triggers ran as the first instructions here; they are not inherited.
	s.st.Config.Config.OnBuild = nil
	return nil
}

// samePlatform reports whether a --platform means what is built for. A variant
// that one side leaves out is not compared.
func samePlatform(wanted, have string) bool {
	w, err := stage.ParsePlatform(wanted)
	if err != nil {
		return false
	}
	h, err := stage.ParsePlatform(have)
	return err == nil && w.OS == h.OS && w.Arch == h.Arch && (w.Variant == h.Variant || w.Variant == "" || h.Variant == "")
}

// emptyConfig is the config of FROM scratch.
func emptyConfig(platform string) imageconfig.Config {
	var c imageconfig.Config
	parts := strings.SplitN(platform, "/", 3)
	c.OS, c.Architecture = "linux", runtime.GOARCH
	if len(parts) > 1 {
		c.OS, c.Architecture = parts[0], parts[1]
	}
	if len(parts) > 2 {
		c.Variant = parts[2]
	}
	c.RootFS.Type = "layers"
	c.Config.WorkingDir = "/"
	c.Config.Env = withPath(nil)
	return c
}

// withPath adds PATH to the environment of an image that has none (root file
// systems become such images): else ENV PATH=/own:$PATH would leave RUN without
// /usr/bin. Source: BuildKit v0.34, which sets PATH for every stage.
func withPath(env []string) []string {
	if slices.ContainsFunc(env, func(kv string) bool { return strings.HasPrefix(kv, "PATH=") }) {
		return env
	}
	return append(slices.Clip(env), "PATH="+DefaultPath)
}

// DefaultPath is PATH where neither the image nor the Dockerfile sets it.
const DefaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// source turns a binding into what a step reads from.
func (m *maker) source(ctx context.Context, b *resolve.Binding) (Source, error) {
	r := b.Resolved
	switch {
	case r.Stage != nil:
		i, ok := m.stages[*r.Stage]
		if !ok {
			return Source{}, m.bindings.Graph.File.Errorf(b.Ref.Word.Pos, len(b.Ref.Raw), "", "stage %d is not built before this line", *r.Stage)
		}
		return Source{Stage: &i}, nil
	case r.Image != "":
		i, err := m.image(ctx, r)
		return Source{Image: &i}, err
	case b.Unknown:
		return m.unknown(r), nil
	case r.Content != nil && r.Content.Manifest != nil:
		i, err := m.content(r, b.Ref.Word.Pos)
		if err != nil {
			return Source{}, m.bindings.Graph.File.Errorf(b.Ref.Word.Pos, len(b.Ref.Raw), "", "%s: %w", r.Reference, err)
		}
		return Source{Image: &i}, nil
	case r.Content != nil:
		return Source{}, m.bindings.Graph.File.Errorf(b.Ref.Word.Pos, len(b.Ref.Raw), "", "%s: sources that have to be fetched are not supported yet", r.Reference)
	default:
		return Source{Scratch: true}, nil
	}
}

// image returns the index of a pinned image in the plan.
func (m *maker) image(ctx context.Context, r pluginapi.Resolved) (int, error) {
	key := r.Image + " " + r.Reference
	if i, ok := m.images[key]; ok {
		return i, nil
	}
	img, err := m.o.Images.Image(ctx, storage.Digest(r.Image))
	if err != nil {
		return 0, err
	}
	i := len(m.plan.Images)
	m.images[key] = i
	m.plan.Images = append(m.plan.Images, Image{Reference: r.Reference, Source: r.Source, ID: img.ID, Layers: img.Layers})
	return i, nil
}

// content returns the index of an image that has to be fetched.
func (m *maker) content(r pluginapi.Resolved, pos dockerfile.Position) (int, error) {
	img, err := Fetched(r)
	if err != nil {
		return 0, err
	}
	key := r.Content.Digest + " " + r.Reference
	if i, ok := m.images[key]; ok {
		return i, nil
	}
	i := len(m.plan.Images)
	m.images[key], img.Pos = i, pos
	m.plan.Images = append(m.plan.Images, img)
	return i, nil
}

// Fetched returns the image that a source's answer promises. What the manifest
// and config say is checked, because cache keys are made of it.
func Fetched(r pluginapi.Resolved) (Image, error) {
	c := *r.Content
	manifest, err := fetch.Manifest(c.Manifest, c.MediaType, c.Config)
	if err != nil {
		return Image{}, err
	}
	img := Image{
		Reference: r.Reference, Source: r.Source, ID: storage.DigestBytes(c.Config),
		Content: &Content{Manifest: manifest, Config: c.Config},
	}
	for _, b := range manifest.Blobs {
		img.Layers = append(img.Layers, storage.Layer{Identity: b.DiffID})
	}
	c.Manifest, c.Config = nil, nil // they cross once
	r.Content = &c
	img.Content.Resolved = r
	return img, nil
}

// unknown stands for a source that only `mstage plan` leaves open.
func (m *maker) unknown(r pluginapi.Resolved) Source {
	i := len(m.plan.Images)
	m.plan.Images = append(m.plan.Images, Image{Reference: r.Reference, Source: r.Source})
	return Source{Image: &i}
}

// binding returns the answer for a word of an instruction; mount is -1 for COPY.
func (s *stageMaker) binding(in dockerfile.Instruction, mount int) *resolve.Binding {
	for i := range s.bound.Refs {
		b := &s.bound.Refs[i]
		if b.Ref.Instruction == in && b.Ref.Mount == mount {
			return b
		}
	}
	return nil
}

// step appends a step and the history entry for it.
func (s *stageMaker) step(in dockerfile.Instruction, step Step, createdBy string) {
	s.number++
	step.Title, step.Pos = in.Head().Text, in.Head().Pos
	step.Number, step.Total = s.number, s.total
	step.Needs = needs(step)
	if s.layers++; s.layers > MaxLayers && s.tooDeep == nil {
		s.tooDeep = s.refuse(in, "join RUNs, or copy what counts into a new stage", "makes layer %d of an image; %d is the most that a mount can have", s.layers, MaxLayers)
	}
	s.st.Steps = append(s.st.Steps, step)
	s.history(createdBy, len(s.st.Steps)-1)
}

// history appends an entry; step is -1 for one without a layer.
func (s *stageMaker) history(createdBy string, step int) {
	s.st.History = append(s.st.History, HistoryEntry{CreatedBy: createdBy, Comment: dockerfile.HistoryComment, Step: step})
}

// needs lists the stages that a step reads.
func needs(step Step) []int {
	var stages []int
	if step.Copy != nil && step.Copy.From.Stage != nil {
		stages = append(stages, *step.Copy.From.Stage)
	}
	if step.Run != nil {
		for _, m := range step.Run.Mounts {
			if m.From.Stage != nil {
				stages = append(stages, *m.From.Stage)
			}
		}
	}
	return stages
}

// positioned adds the instruction's place to an error that has none.
func (s *stageMaker) positioned(in dockerfile.Instruction, err error) error {
	if _, ok := errors.AsType[*dockerfile.Error](err); ok {
		return s.file().Quote(err)
	}
	h := in.Head()
	placed := s.file().Errorf(h.Pos, len(h.Keyword), "", "%s: %v", h.Keyword, err)
	placed.Err = err
	return placed
}

func (s *stageMaker) file() *dockerfile.File { return s.bindings.Graph.File }

// refuse is the error for what can't be honoured.
func (s *stageMaker) refuse(in dockerfile.Instruction, hint, format string, args ...any) error {
	h := in.Head()
	return s.file().Errorf(h.Pos, len(h.Keyword), hint, h.Keyword+" "+format, args...)
}
