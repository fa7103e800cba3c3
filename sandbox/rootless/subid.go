package rootless

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
)

// maxSubIDLine bounds one line of /etc/subuid, in bytes: a name (256 at most), two
// numbers and two colons; the rest is room for comments.
const maxSubIDLine = 4096

// maxExtents is how many lines the kernel takes in a uid_map.
// Source: user_namespaces(7), "Linux 4.15 and later".
const maxExtents = 340

// idRange is one range of subordinate ids on the host.
type idRange struct {
	Start, Count uint32
}

// parseSubIDs returns the ranges of one user, who is listed by name or by number.
// Source: subuid(5). Lines that can't be read are skipped, as newuidmap does.
func parseSubIDs(r io.Reader, name string, uid int) ([]idRange, error) {
	var ranges []idRange
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxSubIDLine)
	for lines.Scan() {
		field := strings.Split(strings.TrimSpace(lines.Text()), ":")
		if len(field) != 3 || field[0] == "" {
			continue
		}
		if field[0] != name && field[0] != strconv.Itoa(uid) {
			continue
		}
		start, err1 := strconv.ParseUint(field[1], 10, 32)
		count, err2 := strconv.ParseUint(field[2], 10, 32)
		if err1 != nil || err2 != nil || count == 0 || start == 0 || start+count > 1<<32-1 {
			continue
		}
		ranges = append(ranges, idRange{uint32(start), uint32(count)})
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	return ranges[:min(len(ranges), maxExtents-1)], nil
}

// subIDs reads the ranges of one user; a file that isn't there has none.
func subIDs(path, name string, uid int) ([]idRange, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	ranges, err := parseSubIDs(f, name, uid)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return ranges, nil
}

// mapArgs are the arguments of newuidmap after the process id: 0 is the caller,
// the ranges follow from 1 on.
func mapArgs(self int, ranges []idRange) []string {
	args := []string{"0", strconv.Itoa(self), "1"}
	next := uint64(1)
	for _, r := range ranges {
		args = append(args, strconv.FormatUint(next, 10),
			strconv.FormatUint(uint64(r.Start), 10), strconv.FormatUint(uint64(r.Count), 10))
		next += uint64(r.Count)
	}
	return args
}
