package plan

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/mstage/mstage/engine/dockerfile"
	"github.com/mstage/mstage/engine/imageconfig"
)

// instruction plans one instruction.
func (s *stageMaker) instruction(in dockerfile.Instruction) error {
	switch in := in.(type) {
	case *dockerfile.Run:
		return s.run(in)
	case *dockerfile.Copy:
		return s.copy(in)
	case *dockerfile.Workdir:
		return s.workdir(in)
	default:
		return s.config(in)
	}
}

// config applies an instruction that changes the config only.
func (s *stageMaker) config(in dockerfile.Instruction) error {
	switch in := in.(type) {
	case *dockerfile.Arg:
		return s.arg(in)
	case *dockerfile.Env:
		return s.env(in)
	case *dockerfile.Label:
		return s.setLabels(in)
	case *dockerfile.User:
		return s.user(in)
	case *dockerfile.Cmd:
		return s.cmd(in)
	case *dockerfile.Entrypoint:
		return s.entrypoint(in)
	case *dockerfile.Expose:
		return s.expose(in)
	case *dockerfile.Volume:
		return s.volume(in)
	case *dockerfile.Shell:
		return s.shell(in)
	case *dockerfile.StopSignal:
		return s.stopSignal(in)
	case *dockerfile.Healthcheck:
		return s.healthcheck(in)
	case *dockerfile.Onbuild:
		return s.onbuild(in)
	case *dockerfile.Maintainer:
		return s.maintainer(in)
	default:
		return s.refuse(in, "", "is not supported")
	}
}

// container is the part of the config that instructions change.
func (s *stageMaker) container() *imageconfig.Container { return &s.st.Config.Config }

func (s *stageMaker) arg(in *dockerfile.Arg) error {
	effective, err := s.scope.Arg(in)
	if err != nil {
		return err
	}
	s.told(effective)
	return nil
}

func (s *stageMaker) env(in *dockerfile.Env) error {
	effective, err := s.scope.Env(in)
	if err != nil {
		return err
	}
	s.told(effective)
	return nil
}

// told appends the history entry of an instruction without a layer, given as it
// took effect.
func (s *stageMaker) told(in dockerfile.Instruction) { s.history(dockerfile.CreatedBy(in), -1) }

func (s *stageMaker) setLabels(in *dockerfile.Label) error {
	c := s.container()
	if c.Labels == nil {
		c.Labels = map[string]string{}
	}
	pairs := make([]dockerfile.KeyValue, len(in.Pairs))
	for i, p := range in.Pairs {
		key, err := s.scope.Expand(p.Key)
		if err != nil {
			return err
		}
		value, err := s.scope.Expand(p.Value)
		if err != nil {
			return err
		}
		c.Labels[key] = value
		pairs[i] = dockerfile.KeyValue{Key: key, Value: value}
	}
	s.told(&dockerfile.Label{Pairs: pairs})
	return nil
}

func (s *stageMaker) user(in *dockerfile.User) error {
	name, err := s.scope.Expand(in.Name)
	if err != nil {
		return err
	}
	if name == "" {
		return s.refuse(in, "name a user or a number", "needs a user, %q is empty here", in.Name)
	}
	s.container().User = name
	s.told(&dockerfile.User{Name: name})
	return nil
}

// withShell is the command line with the stage's shell in front of a shell form.
func (s *stageMaker) withShell(c dockerfile.CommandLine) []string {
	if !c.Shell {
		return c.Args
	}
	shell := s.container().Shell
	if len(shell) == 0 {
		shell = []string{"/bin/sh", "-c"}
	}
	return append(append([]string{}, shell...), strings.Join(c.Args, " "))
}

func (s *stageMaker) cmd(in *dockerfile.Cmd) error {
	c := s.container()
	c.Cmd = s.withShell(in.Command)
	c.ArgsEscaped = true // what docker writes, whatever the platform
	s.cmdSet = true
	s.told(&dockerfile.Cmd{Command: dockerfile.CommandLine{Args: c.Cmd}})
	return nil
}

func (s *stageMaker) entrypoint(in *dockerfile.Entrypoint) error {
	c := s.container()
	c.Entrypoint = s.withShell(in.Command)
	if !s.cmdSet {
		c.Cmd = nil // an inherited CMD was meant for the old entry point
	}
	s.told(&dockerfile.Entrypoint{Command: dockerfile.CommandLine{Args: c.Entrypoint}})
	return nil
}

func (s *stageMaker) volume(in *dockerfile.Volume) error {
	c := s.container()
	if c.Volumes == nil {
		c.Volumes = map[string]struct{}{}
	}
	paths := make([]string, len(in.Paths))
	for i, p := range in.Paths {
		name, err := s.scope.Expand(p)
		if err != nil {
			return err
		}
		if name == "" {
			return s.refuse(in, "", "needs a path, %q is empty here", p)
		}
		paths[i] = name
		c.Volumes[name] = struct{}{}
	}
	s.told(&dockerfile.Volume{Paths: paths})
	return nil
}

func (s *stageMaker) shell(in *dockerfile.Shell) error {
	s.container().Shell = in.Args
	s.told(in)
	return nil
}

func (s *stageMaker) stopSignal(in *dockerfile.StopSignal) error {
	signal, err := s.scope.Expand(in.Signal)
	if err != nil {
		return err
	}
	if !validSignal(signal) {
		return s.refuse(in, "a name such as SIGTERM, or a number", "%q is not a signal", signal)
	}
	s.container().StopSignal = signal
	s.told(&dockerfile.StopSignal{Signal: signal})
	return nil
}

// maxRealTime is the distance of SIGRTMIN and SIGRTMAX in glibc, which counts
// from 34 to 64.
const maxRealTime = 30

// validSignal accepts "SIGTERM", "term", "RTMIN+3", "RTMAX-2" and numbers from 1
// to 64.
func validSignal(name string) bool {
	if n, err := strconv.Atoi(name); err == nil {
		return n >= 1 && n <= 64
	}
	name = "SIG" + strings.TrimPrefix(strings.ToUpper(name), "SIG")
	if unix.SignalNum(name) != 0 {
		return true
	}
	if name == "SIGRTMIN" || name == "SIGRTMAX" {
		return true
	}
	offset, ok := strings.CutPrefix(name, "SIGRTMIN+")
	if !ok {
		offset, ok = strings.CutPrefix(name, "SIGRTMAX-")
	}
	n, err := strconv.ParseUint(offset, 10, 8)
	return ok && err == nil && n <= maxRealTime
}

func (s *stageMaker) healthcheck(in *dockerfile.Healthcheck) error {
	h := &imageconfig.Healthcheck{
		Test: in.Test, Interval: in.Interval, Timeout: in.Timeout,
		StartPeriod: in.StartPeriod, StartInterval: in.StartInterval, Retries: in.Retries,
	}
	s.container().Healthcheck = h
	s.told(in)
	return nil
}

func (s *stageMaker) onbuild(in *dockerfile.Onbuild) error {
	c := s.container()
	c.OnBuild = append(c.OnBuild, in.Expression)
	return nil
}

func (s *stageMaker) maintainer(in *dockerfile.Maintainer) error {
	s.st.Config.Author = in.Name
	s.told(in)
	return nil
}

// workdir sets the working directory and makes it.
func (s *stageMaker) workdir(in *dockerfile.Workdir) error {
	dir, err := s.scope.Expand(in.Path)
	if err != nil {
		return err
	}
	if dir == "" {
		return s.refuse(in, "", "needs a path, %q is empty here", in.Path)
	}
	c := s.container()
	clean := s.absolute(dir)
	if !path.IsAbs(dir) {
		dir = clean
	}
	c.WorkingDir = dir // an absolute one as it is written, as BuildKit has it
	shown := &dockerfile.Workdir{Path: dir}
	if clean == "/" {
		s.number++
		s.told(shown)
		return nil
	}
	s.step(in, Step{Workdir: &Workdir{Path: clean, User: c.User}}, dockerfile.CreatedBy(shown))
	return nil
}

// absolute returns a path inside the image, relative to the working directory.
func (s *stageMaker) absolute(p string) string {
	if !path.IsAbs(p) {
		p = path.Join("/", s.container().WorkingDir, p)
	}
	return path.Clean(p)
}

// expose adds ports in docker's form "80/tcp"; ranges become single ports.
func (s *stageMaker) expose(in *dockerfile.Expose) error {
	c := s.container()
	if c.ExposedPorts == nil {
		c.ExposedPorts = map[string]struct{}{}
	}
	var all []string
	for _, text := range in.Ports {
		words, err := s.scope.ExpandWords(text)
		if err != nil {
			return err
		}
		for _, word := range words {
			ports, err := parsePorts(word)
			if err != nil {
				return s.refuse(in, "write 80, 80/udp or 8000-8010/tcp", "%s: %v", word, err)
			}
			all = append(all, ports...)
		}
	}
	for _, p := range all {
		c.ExposedPorts[p] = struct{}{}
	}
	s.told(&dockerfile.Expose{Ports: all})
	return nil
}

// parsePorts reads "[IP:][HOST:]PORT[-PORT][/PROTOCOL]"; like docker it keeps the
// container's port only.
func parsePorts(word string) ([]string, error) {
	ports, protocol, _ := strings.Cut(word, "/")
	protocol = cmp.Or(strings.ToLower(protocol), "tcp")
	if protocol != "tcp" && protocol != "udp" && protocol != "sctp" {
		return nil, fmt.Errorf("unknown protocol %q", protocol)
	}
	if i := strings.LastIndexByte(ports, ':'); i >= 0 {
		if err := checkHostPart(ports[:i]); err != nil {
			return nil, err
		}
		ports = ports[i+1:]
	}
	from, to, err := parseRange(ports)
	if err != nil {
		return nil, err
	}
	var all []string
	for p := from; p <= to; p++ {
		all = append(all, fmt.Sprintf("%d/%s", p, protocol))
	}
	return all, nil
}

// checkHostPart refuses what stands before the container's port and is neither
// "[IP:]PORT[-PORT]" nor empty.
func checkHostPart(s string) error {
	addr, ports := "", s
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		addr, ports = s[:i], s[i+1:]
	}
	if addr != "" {
		if _, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(addr, "["), "]")); err != nil {
			return fmt.Errorf("%q is not an IP address", addr)
		}
	}
	if ports == "" {
		return nil
	}
	_, _, err := parseRange(ports)
	return err
}

// parseRange reads "PORT[-PORT]".
func parseRange(ports string) (from, to int, err error) {
	first, last, ranged := strings.Cut(ports, "-")
	if from, err = parsePort(first); err != nil || !ranged {
		return from, from, err
	}
	to, err = parsePort(last)
	if err == nil && to < from {
		err = errors.New("the range ends before it begins")
	}
	return from, to, err
}

func parsePort(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("%q is not a port", s)
	}
	return int(n), nil
}
