package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
)

// Net is a network of its own for a cluster: each node in a network namespace, its
// end of a veth pair on a bridge, and this process on the bridge, too. So clients
// reach every node, whatever is cut between the nodes.
//
//	namespace NAME-1      host
//	eth0 10.219.x.11 ──── NAMEv1 ─┐
//	                              ├─ bridge NAMEb, 10.219.x.1
//	eth0 10.219.x.12 ──── NAMEv2 ─┘
//
// A direction is cut by giving the sender a hardware address of the receiver that
// nobody has: its packets leave and are lost without a word, while those of the
// other direction arrive. Nobody asks for addresses meanwhile, they are permanent.
//
// Names hold this process's id. Whatever a process left behind that died is removed by the next one.
type Net struct {
	tb     testing.TB
	name   string
	subnet int
	nodes  int
}

const (
	netPrefix = "ck"
	deadMAC   = "02:00:00:00:de:ad"
	// firstHost is node 1's last octet, less one.
	firstHost = 10
)

var (
	madeBy  = regexp.MustCompile(`^` + netPrefix + `(\d+)x\d+`)
	netsOf  atomic.Int32
	ipTools = []string{"ip"}
)

// NamespacesMissing tells why there can be no Net here, nil if there can.
func NamespacesMissing() error {
	if os.Geteuid() != 0 {
		return errors.New("network namespaces need root")
	}
	for _, tool := range ipTools {
		if _, err := exec.LookPath(tool); err != nil {
			return err
		}
	}
	return nil
}

// newNet makes the namespaces of nodes 1 to n.
func newNet(tb testing.TB, n int) *Net {
	tb.Helper()
	if err := NamespacesMissing(); err != nil {
		tb.Skip(err)
	}
	removeLeftNets(tb)
	nt := &Net{tb: tb, name: fmt.Sprintf("%s%dx%d", netPrefix, os.Getpid(), netsOf.Add(1)), nodes: n}
	tb.Cleanup(func() { removeNets(tb, nt.name) })
	used, err := ip("-o", "-4", "addr", "show")
	if err != nil {
		tb.Fatal(err)
	}
	for nt.subnet = 1; strings.Contains(used, fmt.Sprintf(" 10.219.%d.", nt.subnet)); nt.subnet++ {
		if nt.subnet == 250 {
			tb.Fatal("no free network in 10.219.0.0/16")
		}
	}
	nt.must("link", "add", nt.bridge(), "type", "bridge")
	nt.must("addr", "add", nt.Host()+"/24", "dev", nt.bridge())
	nt.must("link", "set", nt.bridge(), "up")
	for id := 1; id <= n; id++ {
		nt.addNode(id)
	}
	for a := 1; a <= n; a++ {
		for b := 1; b <= n; b++ {
			if a != b {
				nt.send(a, b, nt.mac(b))
			}
		}
	}
	return nt
}

func (nt *Net) addNode(id int) {
	nt.tb.Helper()
	ns := nt.namespace(id)
	nt.must("netns", "add", ns)
	nt.must("link", "add", nt.port(id), "type", "veth", "peer", "name", "eth0", "netns", ns)
	nt.must("link", "set", nt.port(id), "master", nt.bridge(), "up")
	nt.must("-n", ns, "link", "set", "eth0", "address", nt.mac(id))
	nt.must("-n", ns, "addr", "add", nt.Addr(id)+"/24", "dev", "eth0")
	nt.must("-n", ns, "link", "set", "eth0", "up")
	nt.must("-n", ns, "link", "set", "lo", "up")
}

func (nt *Net) bridge() string          { return nt.name + "b" }
func (nt *Net) port(id int) string      { return fmt.Sprintf("%sv%d", nt.name, id) }
func (nt *Net) namespace(id int) string { return fmt.Sprintf("%s-%d", nt.name, id) }
func (nt *Net) mac(id int) string       { return fmt.Sprintf("02:63:6b:00:%02x:%02x", nt.subnet, id) }

// Host is the address of this process on the bridge, Addr that of node id.
func (nt *Net) Host() string { return fmt.Sprintf("10.219.%d.1", nt.subnet) }

// Addr is the address of node id.
func (nt *Net) Addr(id int) string { return fmt.Sprintf("10.219.%d.%d", nt.subnet, firstHost+id) }

// within is what a command runs in node id's namespace behind. The process keeps its id.
func (nt *Net) within(id int) []string { return []string{"ip", "netns", "exec", nt.namespace(id)} }

// CutOneWay loses what from sends to to from now on, and nothing else.
func (nt *Net) CutOneWay(from, to int) { nt.tb.Helper(); nt.send(from, to, deadMAC) }

// Cut loses whatever a and b send to each other from now on.
func (nt *Net) Cut(a, b int) {
	nt.tb.Helper()
	nt.CutOneWay(a, b)
	nt.CutOneWay(b, a)
}

// Unplug takes node id off the network: for clients, too.
func (nt *Net) Unplug(id int) { nt.tb.Helper(); nt.must("link", "set", nt.port(id), "down") }

// Heal ends every cut.
func (nt *Net) Heal() {
	nt.tb.Helper()
	for a := 1; a <= nt.nodes; a++ {
		nt.must("link", "set", nt.port(a), "up")
		for b := 1; b <= nt.nodes; b++ {
			if a != b {
				nt.send(a, b, nt.mac(b))
			}
		}
	}
}

// send gives from the hardware address that it sends to for to.
func (nt *Net) send(from, to int, mac string) {
	nt.tb.Helper()
	nt.must("-n", nt.namespace(from), "neigh", "replace", nt.Addr(to), "lladdr", mac, "nud", "permanent", "dev", "eth0")
}

func (nt *Net) must(args ...string) {
	nt.tb.Helper()
	if _, err := ip(args...); err != nil {
		nt.tb.Fatal(err)
	}
}

func ip(args ...string) (string, error) {
	out, err := exec.Command("ip", args...).CombinedOutput()
	if err != nil {
		err = fmt.Errorf("ip %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return string(out), err
}

// removeLeftNets removes what test processes left that are no more.
func removeLeftNets(tb testing.TB) {
	tb.Helper()
	var dead []string
	for _, name := range netNames(tb) {
		m := madeBy.FindStringSubmatch(name)
		if m == nil || slices.Contains(dead, m[0]) {
			continue
		}
		if pid, err := strconv.Atoi(m[1]); err == nil && !running(pid) {
			dead = append(dead, m[0])
		}
	}
	for _, d := range dead {
		tb.Logf("removing the network %s of a process that died", d)
		removeNets(tb, d)
	}
}

// running tells whether there is a process of this id.
func running(pid int) bool {
	_, err := os.Stat(fmt.Sprintf("/proc/%d", pid))
	return err == nil
}

// removeNets removes the namespaces and links of one Net.
func removeNets(tb testing.TB, name string) {
	tb.Helper()
	for _, n := range netNames(tb) {
		rest, ours := strings.CutPrefix(n, name)
		if !ours || rest == "" || rest[0] >= '0' && rest[0] <= '9' {
			continue
		}
		var err error
		if strings.HasPrefix(rest, "-") {
			_, err = ip("netns", "del", n) // its end of the pair goes with it, and so the other end
		} else {
			_, err = ip("link", "del", n)
		}
		if err != nil && !strings.Contains(err.Error(), "Cannot find device") {
			tb.Errorf("cleaning up: %v", err)
		}
	}
}

// netNames are the names of all namespaces and links that begin like ours.
func netNames(tb testing.TB) []string {
	tb.Helper()
	spaces, err := ip("netns", "list")
	if err != nil {
		tb.Fatal(err)
	}
	links, err := ip("-o", "link", "show")
	if err != nil {
		tb.Fatal(err)
	}
	var names []string
	for line := range strings.SplitSeq(spaces, "\n") {
		if f := strings.Fields(line); len(f) > 0 && madeBy.MatchString(f[0]) {
			names = append(names, f[0])
		}
	}
	for line := range strings.SplitSeq(links, "\n") {
		if f := strings.Fields(line); len(f) > 1 {
			if n, _, _ := strings.Cut(strings.TrimSuffix(f[1], ":"), "@"); madeBy.MatchString(n) {
				names = append(names, n)
			}
		}
	}
	return names
}
