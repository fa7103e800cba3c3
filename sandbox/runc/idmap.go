package runc

import (
	"bufio"
	"fmt"
	"os"
	"strings"

	"github.com/opencontainers/runc/libcontainer/configs"
)

// idMappings are the ids of this user namespace, each mapped to itself: what a
// nested one gets. Every line of the parent's map stays one line, because the
// kernel refuses a line that spans two of them (and libcontainer then asks for
// mapping tools that have nothing to do with it).
type idMappings struct {
	uids, gids []configs.IDMap
	setGroups  bool // setgroups(2) is allowed
	initial    bool // this is the host's own user namespace
}

func readIDMappings() (idMappings, error) {
	var m idMappings
	var err error
	if m.uids, m.initial, err = readIDMap("/proc/self/uid_map"); err != nil {
		return m, err
	}
	if m.gids, _, err = readIDMap("/proc/self/gid_map"); err != nil {
		return m, err
	}
	setgroups, err := os.ReadFile("/proc/self/setgroups")
	m.setGroups = strings.TrimSpace(string(setgroups)) != "deny"
	return m, err
}

// wholeRange is the size of the only line in the initial user namespace.
const wholeRange = 1<<32 - 1

func readIDMap(path string) (maps []configs.IDMap, initial bool, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		var inside, outside, size int64
		if _, err := fmt.Sscan(lines.Text(), &inside, &outside, &size); err != nil {
			return nil, false, fmt.Errorf("read %s: %w", path, err)
		}
		maps = append(maps, configs.IDMap{ContainerID: inside, HostID: inside, Size: size})
		initial = outside == 0 && size == wholeRange
	}
	return maps, initial, lines.Err()
}

func contains(maps []configs.IDMap, id uint32) bool {
	for _, m := range maps {
		if int64(id) >= m.ContainerID && int64(id) < m.ContainerID+m.Size {
			return true
		}
	}
	return false
}

// lastFromZero is the highest id that is mapped without a gap from 0 on.
func lastFromZero(maps []configs.IDMap) int64 {
	next := int64(0)
	for _, m := range maps {
		if m.ContainerID == next {
			next += m.Size
		}
	}
	return next - 1
}
