package dockerfile

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// HistoryComment is the comment of every history entry.
const HistoryComment = "buildkit.dockerfile.v0"

// CreatedBy returns the created_by of an instruction's history entry, "" for
// ONBUILD, which has no entry. The instruction is given as it took effect, a
// copy whose fields are expanded; buildArgs are "NAME=value" for the ARGs
// declared so far in the order of their first declaration, and count for RUN
// only. What must stand in the copy:
//
//   - ARG: Default is the value in effect, nil without one
//   - CMD, ENTRYPOINT, RUN: Command.Args is the whole argv, the shell included
//   - EXPOSE: ports as "80/tcp"
//   - WORKDIR: the path, absolute
//
// RUN, COPY and ADD end with "# buildkit", the others don't; --from, --link and
// --exclude are not shown. An entry has a layer for RUN, COPY, ADD, and for
// WORKDIR unless the path is "/".
// Source: what BuildKit v0.34 writes, dockerfile2llb.
func CreatedBy(ins Instruction, buildArgs ...string) string {
	switch i := ins.(type) {
	case *Run:
		return runCreatedBy(i, buildArgs)
	case *Copy:
		return copyCreatedBy(i)
	case *Arg:
		return argCreatedBy(i)
	case *Env:
		return "ENV" + joinPairs(i.Pairs)
	case *Label:
		return "LABEL" + joinPairs(i.Pairs)
	case *Healthcheck:
		return healthcheckCreatedBy(i)
	case *Cmd:
		return fmt.Sprintf("CMD %q", i.Command.Args)
	case *Entrypoint:
		return fmt.Sprintf("ENTRYPOINT %q", i.Command.Args)
	}
	return simpleCreatedBy(ins)
}

// simpleCreatedBy serves the instructions that show their words as they are.
func simpleCreatedBy(ins Instruction) string {
	switch i := ins.(type) {
	case *Workdir:
		return "WORKDIR " + i.Path
	case *User:
		return "USER " + i.Name
	case *Expose:
		return fmt.Sprintf("EXPOSE %v", i.Ports)
	case *Volume:
		return fmt.Sprintf("VOLUME %v", i.Paths)
	case *Shell:
		return fmt.Sprintf("SHELL %v", i.Args)
	case *StopSignal:
		return "STOPSIGNAL " + i.Signal
	case *Maintainer:
		return "MAINTAINER " + i.Name
	}
	return ""
}

func runCreatedBy(r *Run, buildArgs []string) string {
	words := []string{"RUN"}
	if len(buildArgs) > 0 {
		words = append(words, "|"+strconv.Itoa(len(buildArgs)))
		words = append(words, buildArgs...)
	}
	words = append(words, r.Command.Args...)
	return strings.Join(append(words, "# buildkit"), " ")
}

func copyCreatedBy(c *Copy) string {
	words := []string{"COPY"}
	if c.Add {
		words[0] = "ADD"
	}
	if c.Parents {
		words = append(words, "--parents")
	}
	if c.Chown != "" {
		words = append(words, "--chown="+c.Chown)
	}
	if c.Chmod != "" {
		words = append(words, "--chmod="+c.Chmod)
	}
	words = append(words, c.Sources...)
	for _, file := range c.Inline {
		words = append(words, "<<"+file.Name)
	}
	return strings.Join(append(words, c.Dest, "# buildkit"), " ")
}

func argCreatedBy(a *Arg) string {
	words := []string{"ARG"}
	for _, arg := range a.Args {
		word := arg.Key
		if arg.Default != nil {
			word += "=" + *arg.Default
		}
		words = append(words, word)
	}
	return strings.Join(words, " ")
}

func joinPairs(pairs []KeyValue) string {
	var b strings.Builder
	for _, kv := range pairs {
		b.WriteString(" " + kv.Key + "=" + kv.Value)
	}
	return b.String()
}

func healthcheckCreatedBy(h *Healthcheck) string {
	return fmt.Sprintf("HEALTHCHECK %+v", struct {
		Test                                          []string
		Interval, Timeout, StartPeriod, StartInterval time.Duration
		Retries                                       int
	}{h.Test, h.Interval, h.Timeout, h.StartPeriod, h.StartInterval, h.Retries})
}
