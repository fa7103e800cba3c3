package plan

import (
	"path"
	"slices"
	"strings"

	"github.com/mstage/mstage/engine/dockerfile"
)

// run plans a RUN.
func (s *stageMaker) run(in *dockerfile.Run) error {
	if in.Security != "" && in.Security != "sandbox" {
		return s.refuse(in, "leave the flag out: the default is the sandbox", "--security=%s is not supported yet", in.Security)
	}
	if len(in.Devices) > 0 {
		return s.refuse(in, "leave the flag out", "--device is not supported yet")
	}
	network, err := s.network(in)
	if err != nil {
		return err
	}
	args, files := s.runArgs(in)
	c := s.container()
	r := &Run{
		Args: args, Files: files, Dir: s.absolute(c.WorkingDir), User: c.User, Network: network,
		ShmBytes: s.o.ShmBytes, Ulimits: s.o.Ulimits,
	}
	env, declared := s.scope.Environ()
	r.KeyEnv, r.Env = env, append(slices.Clone(env), s.scope.Proxies()...)
	for i, word := range in.Mounts {
		m, err := s.mount(in, i, word)
		if err != nil {
			return err
		}
		r.Mounts = append(r.Mounts, m)
	}
	shown := *in
	shown.Command = dockerfile.CommandLine{Args: args}
	s.step(in, Step{Run: r}, dockerfile.CreatedBy(&shown, declared...))
	return nil
}

// network is the mode of a RUN. One that asks for the host by itself needs the
// caller's word: a Dockerfile comes from outside.
func (s *stageMaker) network(in *dockerfile.Run) (string, error) {
	switch in.Network {
	case "":
		return s.o.Network, nil
	case "default", "none":
		return in.Network, nil
	case "host":
		if s.o.Network == "host" || s.o.AllowHostNetwork {
			return "host", nil
		}
		return "", s.refuse(in, "add --allow network.host to the command, or --network host for all RUNs",
			"--network=host reaches this host's own services and was not allowed")
	default:
		return "", s.refuse(in, "default, none or host", "--network=%s is not a network mode", in.Network)
	}
}

// runArgs is the command line, and the here-document that it runs as a program.
func (s *stageMaker) runArgs(in *dockerfile.Run) ([]string, []File) {
	if !in.Command.Shell {
		return in.Command.Args, nil
	}
	script, file := in.Command.Script()
	args := s.withShell(dockerfile.CommandLine{Args: []string{script}, Shell: true})
	if file == nil {
		return args, nil
	}
	return args, []File{{Name: file.Name, Data: file.Data}}
}

// mount plans one RUN --mount.
func (s *stageMaker) mount(in *dockerfile.Run, i int, word dockerfile.Word) (Mount, error) {
	m, err := dockerfile.ParseMount(word, s.scope.Expand)
	if err != nil {
		return Mount{}, err
	}
	if m.Type == dockerfile.MountSSH {
		return Mount{}, s.refuse(in, "", "--mount=type=ssh is not supported yet")
	}
	planned := Mount{
		Type: m.Type, Source: m.Source, Target: m.Target, ReadOnly: m.ReadOnly, SizeBytes: m.SizeBytes,
		ID: m.ID, Sharing: m.Sharing, Required: m.Required,
	}
	if m.Env != nil {
		planned.Env = *m.Env
	}
	planned.setOwner(m)
	// A secret that goes to a variable has no target; what else has none is shown
	// at the working directory, as with docker.
	if m.Target != "" || m.Type != dockerfile.MountSecret {
		planned.Target = s.absolute(m.Target)
	}
	if planned.Target == "/" {
		return Mount{}, s.refuse(in, "mount below the root: target=/mnt", "--mount can't replace the root directory")
	}
	if m.From == "" {
		planned.Context = m.Type == dockerfile.MountBind
		planned.From.Scratch = !planned.Context
		return planned, nil
	}
	if m.From == "scratch" {
		planned.From.Scratch = true
		return planned, nil
	}
	planned.From, err = s.source(s.ctx, s.binding(in, i))
	return planned, err
}

// setOwner fills mode and owner; the defaults are docker's.
func (m *Mount) setOwner(parsed dockerfile.Mount) {
	m.Mode = 0o755
	if parsed.Type == dockerfile.MountSecret {
		m.Mode = 0o400
	}
	if parsed.Mode != nil {
		m.Mode = uint32(*parsed.Mode)
	}
	if parsed.UID != nil {
		m.UID = uint32(*parsed.UID)
	}
	if parsed.GID != nil {
		m.GID = uint32(*parsed.GID)
	}
}

// copy plans a COPY or an ADD.
func (s *stageMaker) copy(in *dockerfile.Copy) error {
	if err := s.refuseCopyFlags(in); err != nil {
		return err
	}
	shown, err := s.expandCopy(in)
	if err != nil {
		return err
	}
	c := &Copy{Unpack: in.Add, Chown: shown.Chown, Chmod: shown.Chmod, Dest: s.copyDest(shown.Dest)}
	for _, name := range shown.Sources {
		if in.Add && isRemote(name) {
			return s.refuse(in, "RUN with curl or git, or a download before the build", "from a URL or a git repository is not supported yet: %s", name)
		}
		c.Sources = append(c.Sources, relative(name))
	}
	for _, f := range shown.Inline {
		c.Inline = append(c.Inline, File{Name: f.Name, Data: f.Data})
	}
	if err := s.copySource(in, c); err != nil {
		return err
	}
	s.step(in, Step{Copy: c}, dockerfile.CreatedBy(shown))
	return nil
}

// relative is a source as a clean path from the root of what it is taken from;
// it can't leave that.
func relative(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

// refuseCopyFlags names what can't be honoured yet.
func (s *stageMaker) refuseCopyFlags(in *dockerfile.Copy) error {
	flags := map[string]bool{
		"--link": in.Link, "--parents": in.Parents, "--exclude": len(in.Exclude) > 0,
		"--checksum": in.Checksum != "", "--keep-git-dir": in.KeepGitDir != nil, "--unpack": in.Unpack != nil,
	}
	for _, name := range []string{"--link", "--parents", "--exclude", "--checksum", "--keep-git-dir", "--unpack"} {
		if flags[name] {
			return s.refuse(in, "leave the flag out", "%s is not supported yet", name)
		}
	}
	return nil
}

// expandCopy returns the instruction with its words expanded.
func (s *stageMaker) expandCopy(in *dockerfile.Copy) (*dockerfile.Copy, error) {
	out := *in
	out.Sources = slices.Clone(in.Sources)
	out.Inline = slices.Clone(in.Inline)
	words := []*string{&out.Chown, &out.Chmod, &out.Dest}
	for i := range out.Sources {
		words = append(words, &out.Sources[i])
	}
	for _, w := range words {
		var err error
		if *w, err = s.scope.Expand(*w); err != nil {
			return nil, err
		}
	}
	for i := range out.Inline {
		if !out.Inline[i].Expand {
			continue
		}
		var err error
		if out.Inline[i].Data, err = s.scope.ExpandData(out.Inline[i].Data); err != nil {
			return nil, err
		}
	}
	return &out, nil
}

// copyDest is the absolute destination; what says that it is a directory stays.
func (s *stageMaker) copyDest(dest string) string {
	dir := dest == "." || dest == ".." || strings.HasSuffix(dest, "/") || strings.HasSuffix(dest, "/.") || strings.HasSuffix(dest, "/..")
	dest = s.absolute(dest)
	if dir && dest != "/" {
		dest += "/"
	}
	return dest
}

// isRemote reports whether an ADD source is a URL or a git repository.
func isRemote(name string) bool {
	for _, prefix := range []string{"http://", "https://", "git://", "git@", "ssh://", "ftp://"} {
		if strings.HasPrefix(name, prefix) {
			return true
		}
	}
	return false
}

// copySource sets where the files come from.
func (s *stageMaker) copySource(in *dockerfile.Copy, c *Copy) error {
	switch in.From.Text {
	case "":
		c.Context = true
		return nil
	case "scratch":
		c.From.Scratch = true
		return nil
	}
	var err error
	c.From, err = s.source(s.ctx, s.binding(in, -1))
	return err
}
