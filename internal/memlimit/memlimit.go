// Package memlimit finds what bounds the memory of this process: the host's available memory and the memory cgroups above
// it, version 1 and 2. A process that allocates past a cgroup's limit is killed, not refused, so whoever is about to
// allocate a lot asks here first.
package memlimit

import (
	"errors"
	"io/fs"
	"math"
	"os"
	"path"
	"strconv"
	"strings"
)

// Limit is one bound. All numbers are bytes.
type Limit struct {
	Name string // for people: "memory of this host", "memory cgroup /a/b"
	Max  uint64
	Free uint64 // what is left of Max, counting file cache that the kernel gives back under pressure as free
}

// none is from where a limit means no limit: version 1 writes the largest number of pages.
const none = math.MaxInt64 >> 12 << 12

// Read gives every limit that applies to this process, the host's first. root is the directory that stands for "/": empty
// but in tests. What a kernel does not have is left out; a file that is there and makes no sense is an error, because a
// limit that was not understood is not the same as none.
func Read(root string) ([]Limit, error) {
	var all []Limit
	b, err := os.ReadFile(path.Join(root, "/proc/meminfo"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	default:
		if l, ok := parseMeminfo(string(b)); ok {
			all = append(all, l)
		}
	}
	groups, err := readOptional(root, "/proc/self/cgroup")
	if err != nil {
		return nil, err
	}
	mounts, err := readOptional(root, "/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	for _, c := range find(groups, mounts) {
		for dir := c.dir; ; dir = path.Dir(dir) {
			l, ok, err := c.read(root, dir)
			if err != nil {
				return nil, err
			}
			if ok {
				all = append(all, l)
			}
			if dir == c.mount || dir == "/" || dir == "." {
				break
			}
		}
	}
	return all, nil
}

func readOptional(root, name string) (string, error) {
	b, err := os.ReadFile(path.Join(root, name))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	return string(b), err
}

// controller is a hierarchy that may limit memory, and where this process is in it.
type controller struct {
	mount string // mount point
	dir   string // mount point and the group of this process
	files files
}

// files are the names of one version of cgroups.
type files struct {
	max, used string
	cache     []string // of memory.stat: file cache without shared memory, with the groups below
}

var (
	version1 = files{"memory.limit_in_bytes", "memory.usage_in_bytes", []string{"total_active_file", "total_inactive_file"}}
	version2 = files{"memory.max", "memory.current", []string{"active_file", "inactive_file"}}
)

// find reads /proc/self/cgroup and /proc/self/mountinfo. Lines that it does not know are no concern of ours.
func find(groups, mounts string) []controller {
	var out []controller
	for line := range strings.Lines(groups) {
		parts := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3) // hierarchy:controllers:path
		if len(parts) != 3 || !strings.HasPrefix(parts[2], "/") {
			continue
		}
		switch {
		case parts[0] == "0" && parts[1] == "":
			if root, mount, ok := findMount(mounts, "cgroup2", ""); ok {
				out = append(out, controller{mount, path.Join(mount, below(root, parts[2])), version2})
			}
		case has(parts[1], "memory"):
			if root, mount, ok := findMount(mounts, "cgroup", "memory"); ok {
				out = append(out, controller{mount, path.Join(mount, below(root, parts[2])), version1})
			}
		}
	}
	return out
}

// below is a group's path seen from the mount's root, which in a container is a group of the host.
func below(root, group string) string {
	group = path.Clean(group)
	if root == "/" || root == group {
		return strings.TrimPrefix(group, root)
	}
	if rest, ok := strings.CutPrefix(group, root+"/"); ok {
		return rest
	}
	return "" // outside of what is mounted: its top is the nearest that can be seen
}

// findMount finds the mount of a file system type, with an option if one is named: "ID PARENT DEV ROOT MOUNT ... - TYPE SOURCE
// OPTIONS".
func findMount(mounts, fsType, option string) (root, mount string, ok bool) {
	for line := range strings.Lines(mounts) {
		before, after, cut := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		f, g := strings.Fields(before), strings.Fields(after)
		if !cut || len(f) < 5 || len(g) < 3 || g[0] != fsType || (option != "" && !has(g[2], option)) {
			continue
		}
		return path.Clean(unescape(f[3])), path.Clean(unescape(f[4])), true
	}
	return "", "", false
}

func has(list, want string) bool {
	for item := range strings.SplitSeq(list, ",") {
		if item == want {
			return true
		}
	}
	return false
}

// unescape undoes the octal escapes of mountinfo.
func unescape(s string) string {
	return strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(s)
}

// read gives the limit of one group, if it has one.
func (c *controller) read(root, dir string) (Limit, bool, error) {
	at := func(name string) (string, error) { return readOptional(root, path.Join(dir, name)) }
	text, err := at(c.files.max)
	if err != nil || text == "" { // the top of version 2 has no such file
		return Limit{}, false, err
	}
	limit, err := parseBytes(text)
	if err != nil || limit >= none {
		return Limit{}, false, err
	}
	if text, err = at(c.files.used); err != nil {
		return Limit{}, false, err
	}
	used, err := parseBytes(text)
	if err != nil {
		return Limit{}, false, err
	}
	if text, err = at("memory.stat"); err != nil {
		return Limit{}, false, err
	}
	used -= min(used, sumStat(text, c.files.cache))
	group := strings.TrimPrefix(dir, c.mount)
	if group == "" {
		group = "/"
	}
	return Limit{Name: "memory cgroup " + group, Max: limit, Free: limit - min(limit, used)}, true, nil
}

// parseBytes reads a number of bytes, or "max" for no limit.
func parseBytes(s string) (uint64, error) {
	s = strings.TrimSpace(s)
	if s == "max" {
		return math.MaxUint64, nil
	}
	return strconv.ParseUint(s, 10, 64)
}

// sumStat adds up the lines "key number" of memory.stat that are named.
func sumStat(stat string, keys []string) uint64 {
	var sum uint64
	for line := range strings.Lines(stat) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		for _, k := range keys {
			if n, err := strconv.ParseUint(value, 10, 64); k == key && err == nil && n <= math.MaxUint64-sum {
				sum += n
			}
		}
	}
	return sum
}

// parseMeminfo reads MemTotal and MemAvailable.
func parseMeminfo(s string) (Limit, bool) {
	l := Limit{Name: "memory of this host"}
	found := 0
	for line := range strings.Lines(s) {
		key, value, _ := strings.Cut(line, ":")
		kb, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 54)
		if err != nil {
			continue
		}
		switch key {
		case "MemTotal":
			l.Max, found = kb<<10, found|1
		case "MemAvailable":
			l.Free, found = kb<<10, found|2
		}
	}
	return l, found == 3
}
