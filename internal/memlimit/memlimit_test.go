package memlimit

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const meminfo = "MemTotal:       1000 kB\nMemFree: 10 kB\nMemAvailable:    600 kB\n"

// tree writes files below a directory that stands for "/".
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestRead(t *testing.T) {
	const mounts2 = "30 23 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"
	const mounts1 = "31 23 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n32 23 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
	const none1 = "9223372036854771712\n"
	for _, c := range []struct {
		name  string
		files map[string]string
		want  string // NAME=FREE/MAX ...
	}{
		{"no cgroups", map[string]string{"proc/meminfo": meminfo}, "memory of this host=614400/1024000"},
		{"version 2, every ancestor, cache taken off, no shared memory taken off", map[string]string{
			"proc/self/cgroup": "0::/a/b\n", "proc/self/mountinfo": mounts2,
			"sys/fs/cgroup/a/b/memory.max": "1000\n", "sys/fs/cgroup/a/b/memory.current": "900\n",
			"sys/fs/cgroup/a/b/memory.stat": "anon 5\nfile 700\nshmem 300\nactive_file 100\ninactive_file 300\n",
			"sys/fs/cgroup/a/memory.max":    "800\n", "sys/fs/cgroup/a/memory.current": "900\n",
			"sys/fs/cgroup/memory.stat": "",
		}, "memory cgroup /a/b=500/1000 memory cgroup /a=0/800"},
		{"version 2 without a limit", map[string]string{
			"proc/self/cgroup": "0::/a\n", "proc/self/mountinfo": mounts2, "sys/fs/cgroup/a/memory.max": "max\n", "sys/fs/cgroup/a/memory.current": "900\n",
		}, ""},
		{"version 1, the top included", map[string]string{
			"proc/self/cgroup": "4:cpu:/x\n3:memory,hugetlb:/a\n0::/\n", "proc/self/mountinfo": mounts1,
			"sys/fs/cgroup/memory/a/memory.limit_in_bytes": "100\n", "sys/fs/cgroup/memory/a/memory.usage_in_bytes": "60\n",
			"sys/fs/cgroup/memory/a/memory.stat":         "active_file 99\ntotal_active_file 10\ntotal_inactive_file 5\ntotal_shmem 30\n",
			"sys/fs/cgroup/memory/memory.limit_in_bytes": none1, "sys/fs/cgroup/memory/memory.usage_in_bytes": "7\n",
		}, "memory cgroup /a=55/100"},
		{"a container sees its own group as the root", map[string]string{
			"proc/self/cgroup": "0::/docker/1\n", "proc/self/mountinfo": "30 23 0:27 /docker/1 /sys/fs/cgroup ro - cgroup2 cgroup2 rw\n",
			"sys/fs/cgroup/memory.max": "50\n", "sys/fs/cgroup/memory.current": "20\n",
		}, "memory cgroup /=30/50"},
		{"a mount with a space", map[string]string{
			"proc/self/cgroup": "0::/\n", "proc/self/mountinfo": "30 23 0:27 / /my\\040groups rw - cgroup2 cgroup2 rw\n",
			"my groups/memory.max": "50\n", "my groups/memory.current": "20\n",
		}, "memory cgroup /=30/50"},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := Read(tree(t, c.files))
			if err != nil {
				t.Fatal(err)
			}
			var parts []string
			for _, l := range got {
				parts = append(parts, fmt.Sprintf("%s=%d/%d", l.Name, l.Free, l.Max))
			}
			if s := strings.Join(parts, " "); s != c.want {
				t.Errorf("got  %s\nwant %s", s, c.want)
			}
		})
	}
}

// A limit that cannot be read is not taken for none.
func TestReadRefusesNonsense(t *testing.T) {
	_, err := Read(tree(t, map[string]string{
		"proc/self/cgroup": "0::/a\n", "proc/self/mountinfo": "30 23 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "sys/fs/cgroup/a/memory.max": "a lot\n",
	}))
	if err == nil {
		t.Error("no error")
	}
}

func TestReadHere(t *testing.T) {
	all, err := Read("")
	if err != nil || len(all) == 0 || all[0].Free == 0 || all[0].Free > all[0].Max {
		t.Errorf("%+v, %v", all, err)
	}
	t.Logf("%+v", all)
}

func FuzzFind(f *testing.F) {
	f.Add("0::/a\n", "30 23 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n", "active_file 10\n", "MemTotal: 1 kB\n")
	f.Add("3:memory:/../x\n", "32 23 0:29 /x /m\\040 rw - cgroup cgroup rw,memory\n", "total_active_file 18446744073709551615\n", "MemAvailable: 99999999999999999999 kB")
	f.Fuzz(func(t *testing.T, groups, mounts, stat, meminfo string) {
		for _, c := range find(groups, mounts) {
			if c.dir != c.mount && !strings.HasPrefix(c.dir, strings.TrimSuffix(c.mount, "/")+"/") {
				t.Errorf("group %q is outside of its mount %q", c.dir, c.mount)
			}
		}
		sumStat(stat, version1.cache)
		parseMeminfo(meminfo)
	})
}
