// Package dockerfile turns Dockerfile text into instructions with positions.
//
// It wraps BuildKit's parser, instruction and shell packages and is their only
// user, so that nothing else in the engine knows how the text was parsed. No
// variable is expanded here; Expand is called by whoever knows the scope.
// Source: Dockerfile reference, docker/dockerfile 1.x.
package dockerfile

import "time"

// Position is a place in a Dockerfile. Lines and columns count from 1 (column in
// bytes); 0 means unknown. EndLine is the last line of a continued instruction.
type Position struct {
	File    string `json:"file"`
	Line    int    `json:"line"`
	Column  int    `json:"column,omitempty"`
	EndLine int    `json:"endLine,omitempty"`
}

// Word is text as written, with its position. Variables are not expanded.
type Word struct {
	Text string
	Pos  Position
}

// File is one parsed Dockerfile.
type File struct {
	// Name is how the user named the file; it stands in every position.
	Name string
	// Source is the text, kept to quote lines in errors.
	Source []byte
	// Escape is the escape character, '\\' or '`'.
	Escape rune
	// GlobalArgs are the ARGs before the first FROM.
	GlobalArgs []*Arg
	Stages     []*Stage
	// Warnings are what is accepted but most likely not meant, in the file's order.
	Warnings []Warning

	lines []string // Source split, without newlines
}

// Warning is advice about a Dockerfile that builds nevertheless.
type Warning struct {
	Pos     Position
	Message string
}

// Stage is one FROM with the instructions below it.
type Stage struct {
	Index int
	// Name is the word after AS as written, "" without one.
	Name string
	// Base is the word after FROM.
	Base Word
	// Platform is the value of --platform; Text is "" without one.
	Platform Word
	Pos      Position
	// Text is the FROM line on one line, as Header.Text: "FROM debian AS build".
	Text         string
	Instructions []Instruction
}

// Instruction is one of the pointer types below.
type Instruction interface {
	Head() *Header
}

// Header is what all instructions have.
type Header struct {
	// Keyword is upper case: "RUN".
	Keyword string
	// Text is the instruction on one line as history shows it, flags included,
	// variables not expanded: "RUN echo $X", "COPY --from=a /b /c".
	Text string
	Pos  Position
}

// Head returns the header itself.
func (h *Header) Head() *Header { return h }

// KeyValue is one NAME=value pair; both may hold variables.
type KeyValue struct {
	Key, Value string
	// NoDelim is set for the old form "ENV NAME value".
	NoDelim bool
}

// InlineFile is a here-document.
type InlineFile struct {
	Name string // the word after <<
	Data string
	// Expand is false when the word was quoted. COPY and ADD only: a shell
	// reads the here-documents of RUN itself.
	Expand bool
	// Chomp is set for <<-: leading tabs don't count. Data of COPY and ADD has
	// lost them already; Data of RUN is as written.
	Chomp bool
}

// CommandLine is the shell form (Shell true, one element) or the exec form.
type CommandLine struct {
	Args  []string
	Shell bool
	Files []InlineFile // here-documents of RUN
}

// ArgValue is one name of an ARG; Default is nil without "=".
type ArgValue struct {
	Key     string
	Default *string
}

type (
	// Arg is ARG NAME[=default]….
	Arg struct {
		Header
		Args []ArgValue
	}
	// Env is ENV.
	Env struct {
		Header
		Pairs []KeyValue
	}
	// Label is LABEL.
	Label struct {
		Header
		Pairs []KeyValue
	}
	// Run is RUN. Mounts are the raw values of --mount; ParseMount reads one
	// after expansion. Network and Security are "" without the flag.
	Run struct {
		Header
		Command  CommandLine
		Mounts   []Word
		Network  string
		Security string
		// Devices are the raw values of --device.
		Devices []Word
	}
	// Copy is COPY, or ADD when Add is set.
	Copy struct {
		Header
		Add     bool
		Sources []string
		Inline  []InlineFile
		Dest    string
		// From is the value of --from; Text is "" without one.
		From         Word
		Chown, Chmod string
		Link         bool
		Parents      bool
		Exclude      []string
		// The rest is ADD's.
		Checksum   string
		KeepGitDir *bool
		Unpack     *bool
	}
	// Workdir is WORKDIR.
	Workdir struct {
		Header
		Path string
	}
	// User is USER.
	User struct {
		Header
		Name string
	}
	// Cmd is CMD.
	Cmd struct {
		Header
		Command CommandLine
	}
	// Entrypoint is ENTRYPOINT.
	Entrypoint struct {
		Header
		Command CommandLine
	}
	// Expose is EXPOSE.
	Expose struct {
		Header
		Ports []string
	}
	// Volume is VOLUME.
	Volume struct {
		Header
		Paths []string
	}
	// Shell is SHELL.
	Shell struct {
		Header
		Args []string
	}
	// StopSignal is STOPSIGNAL.
	StopSignal struct {
		Header
		Signal string
	}
	// Healthcheck is HEALTHCHECK. Test is {"NONE"}, {"CMD", …} or {"CMD-SHELL", …}.
	// A zero duration or count means inherited.
	Healthcheck struct {
		Header
		Test                                          []string
		Interval, Timeout, StartPeriod, StartInterval time.Duration
		Retries                                       int
	}
	// Onbuild is ONBUILD; Expression is the instruction after the keyword.
	Onbuild struct {
		Header
		Expression string
	}
	// Maintainer is MAINTAINER.
	Maintainer struct {
		Header
		Name string
	}
)

// MountType is the type of a RUN --mount.
type MountType string

// The mount types of RUN --mount.
const (
	MountBind   MountType = "bind"
	MountCache  MountType = "cache"
	MountTmpfs  MountType = "tmpfs"
	MountSecret MountType = "secret"
	MountSSH    MountType = "ssh"
)

// Mount is one parsed RUN --mount.
type Mount struct {
	Type     MountType
	From     string // "" is the build context (bind) or an empty directory (cache)
	Source   string
	Target   string
	ReadOnly bool
	// SizeBytes is the limit of a tmpfs, 0 for none.
	SizeBytes int64
	ID        string // cache, secret
	Sharing   string // cache: shared, private, locked
	Required  bool   // secret
	// Env names the variable that gets the secret; nil for a file.
	Env *string
	// Mode, UID and GID are nil when not given.
	Mode, UID, GID *uint64
}
