package copy

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/mstage/mstage/storage/tree"
)

// Chmod is a parsed --chmod. The zero value keeps every mode.
type Chmod struct {
	given    bool
	absolute bool
	mode     uint32
	changes  []modeChange
}

// modeChange is one operator of a symbolic mode with what it applies to.
type modeChange struct {
	who   uint32 // the bits that may change
	op    byte   // '+', '-' or '='
	bits  uint32 // rwx for all three, setuid, setgid and sticky
	execX bool   // X
	from  byte   // 'u', 'g' or 'o' copies that one's bits; 0 for none
}

const (
	whoUser  = 0o4700
	whoGroup = 0o2070
	whoOther = 0o0007
	whoAll   = whoUser | whoGroup | whoOther
	sticky   = 0o1000
	permMask = 0o7777
)

// ParseChmod returns the change that an octal mode up to 07777 or a symbolic
// one as in chmod(1) describes ("u+rX,go=u-w"). Without u, g, o or a it applies
// to all, as if the umask were 0. The sticky bit changes where t is written only,
// and not for o alone. "" keeps modes.
// Source: setmode(3) of BSD, which BuildKit follows.
func ParseChmod(s string) (Chmod, error) {
	if s == "" {
		return Chmod{}, nil
	}
	if s[0] >= '0' && s[0] <= '9' {
		n, err := strconv.ParseUint(s, 8, 32)
		if err != nil || n > permMask {
			return Chmod{}, fmt.Errorf("invalid mode %q: an octal mode is between 0 and 07777", s)
		}
		return Chmod{given: true, absolute: true, mode: uint32(n)}, nil
	}
	c := Chmod{given: true}
	for clause := range strings.SplitSeq(s, ",") {
		changes, ok := parseClause(clause)
		if !ok {
			return Chmod{}, fmt.Errorf("invalid mode %q: %q is neither octal nor symbolic as in chmod(1)", s, clause)
		}
		c.changes = append(c.changes, changes...)
	}
	return c, nil
}

// parseClause parses [ugoa]*([-+=][rwxXst]*|[ugo])+.
func parseClause(s string) ([]modeChange, bool) {
	end := strings.IndexAny(s, "+-=")
	if end < 0 {
		return nil, false
	}
	who := uint32(0)
	for _, c := range s[:end] {
		bits, ok := map[rune]uint32{'u': whoUser, 'g': whoGroup, 'o': whoOther, 'a': whoAll}[c]
		if !ok {
			return nil, false
		}
		who |= bits
	}
	if who == 0 {
		who = whoAll
	}
	var changes []modeChange
	for rest := s[end:]; rest != ""; {
		change := modeChange{who: who, op: rest[0]}
		next := strings.IndexAny(rest[1:], "+-=") + 1
		if next == 0 {
			next = len(rest)
		}
		if !change.parsePerms(rest[1:next]) {
			return nil, false
		}
		changes = append(changes, change)
		rest = rest[next:]
	}
	return changes, true
}

func (m *modeChange) parsePerms(s string) bool {
	if s == "u" || s == "g" || s == "o" {
		m.from = s[0]
		return true
	}
	for _, c := range s {
		switch c {
		case 'r':
			m.bits |= 0o444
		case 'w':
			m.bits |= 0o222
		case 'x':
			m.bits |= 0o111
		case 's':
			m.bits |= 0o6000
		case 't':
			if m.who != whoOther {
				m.who |= sticky
				m.bits |= sticky
			}
		case 'X':
			m.execX = true
		default:
			return false
		}
	}
	return true
}

// Apply returns the st_mode that a file of mode gets. Symbolic links have none
// to change.
func (c Chmod) Apply(mode uint32) uint32 {
	if !c.given || mode&tree.TypeMask == tree.TypeSymlink {
		return mode
	}
	if c.absolute {
		return mode&tree.TypeMask | c.mode
	}
	for _, change := range c.changes {
		mode = change.apply(mode)
	}
	return mode
}

func (m modeChange) apply(mode uint32) uint32 {
	bits := m.bits
	if m.execX && (mode&tree.TypeMask == tree.TypeDir || mode&0o111 != 0) {
		bits |= 0o111
	}
	if m.from != 0 {
		bits = mode >> map[byte]uint32{'u': 6, 'g': 3, 'o': 0}[m.from] & 7 * 0o111
	}
	bits &= m.who
	switch m.op {
	case '+':
		return mode | bits
	case '-':
		return mode &^ bits
	default:
		return mode&^m.who | bits
	}
}
