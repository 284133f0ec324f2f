package netfilter

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/fairway-net/fairway/agent/cluster"
	"github.com/fairway-net/fairway/proxy/iptables"
)

// The names of the backends, as the --iptables-backend option has them.
const (
	Legacy = "legacy"
	NFT    = "nft"
	// Auto stands for the backend that the host uses.
	Auto = "auto"
)

// lockWait is how many seconds iptables-restore waits for the xtables lock.
const lockWait = "5"

// A Backend is one kind of iptables on this host, with the families that work. It is safe for concurrent use.
type Backend struct {
	// Name is Legacy or NFT.
	Name string
	// Why says in a sentence why this backend was chosen.
	Why string
	// Version is that of the binaries, "1.8.9".
	Version string
	// RandomFully is true when MASQUERADE has --random-fully.
	RandomFully bool
	// Binaries are the programs of the families that work.
	Binaries map[cluster.Family]Binaries
	// Missing says for each family that does not work what is missing.
	Missing map[cluster.Family]string
	// Warnings are sentences for the operator, such as about rules that an earlier proxy left in the other backend.
	Warnings []string

	run runner
	// own are the programs that run has started, and writes what they wrote: how a Watch tells them from others'.
	own    *children
	writes *ownWrites
}

// Binaries are the paths of a family's programs.
type Binaries struct {
	Command, Save, Restore string
}

// Families returns the families that work, IPv4 first.
func (b *Backend) Families() (list []cluster.Family) {
	for _, f := range cluster.Families {
		if _, ok := b.Binaries[f]; ok {
			list = append(list, f)
		}
	}
	return list
}

// stageChains is how many chains iptables-nft is given at once of those that nothing leads to; see package iptables for why. The rules of
// 10,000 Services took 1.8.9 5.5 s of processor time in one commit; in commits of 1,600, 800, 400, 200 and 100 chains 2.7 s,
// 2.2 s, 1.9 s, 1.8 s and 1.8 s. They are then also read back in 0.8 s instead of 2.3 s, and deleted in 0.3 s instead of 1.5 s.
const stageChains = 400

// Diff returns what turns have into want, in the form that costs the backend least. iptables-legacy replaces the whole table with each
// commit, so it gets the fewest.
func (b *Backend) Diff(have, want *iptables.Ruleset) *iptables.Restore {
	if b.Name == NFT {
		return iptables.DiffInStages(have, want, stageChains)
	}
	return iptables.Diff(have, want)
}

// Read returns what the kernel holds of ours in filter and nat. Each of the two tables is consistent in itself. known, which
// may be nil, is what it is likely to hold; the result shares its memory.
func (b *Backend) Read(ctx context.Context, f cluster.Family, known *iptables.Ruleset) (*iptables.Ruleset, error) {
	bin, ok := b.Binaries[f]
	if !ok {
		return nil, fmt.Errorf("read %s rules: iptables-%s does not work for the family: %s", f, b.Name, b.Missing[f])
	}
	defer b.writes.reading(f)
	save := func(runs ...[]string) (*iptables.Ruleset, error) {
		p := iptables.NewParser(f, known)
		for _, args := range runs {
			if _, err := b.run(ctx, command{path: bin.Save, args: args, stdout: p}); err != nil {
				return nil, fmt.Errorf("read %s rules: %w", f, err)
			}
		}
		r, err := p.Ruleset()
		if err != nil {
			return nil, fmt.Errorf("read %s rules: %w", f, err)
		}
		return r, nil
	}
	// iptables-nft-save fetches all tables whichever it is asked for (1.8.9), so it is asked once, for all; unless there is
	// a table that it stumbles over, which need not be one of ours.
	if b.Name == NFT {
		if r, err := save(nil); err == nil {
			return r, nil
		}
	}
	return save([]string{"-t", iptables.Filter}, []string{"-t", iptables.NAT})
}

// ReadChains returns what the kernel holds of chains of one or both tables, in a Ruleset that has nothing else. A chain of ours
// that can't be read is taken for missing, which a Sync repairs whatever is wrong with it. With iptables-nft it costs
// milliseconds where Read costs seconds. The chains are not read at one moment.
func (b *Backend) ReadChains(ctx context.Context, f cluster.Family, chains []iptables.ChainName) (*iptables.Ruleset, error) {
	bin, ok := b.Binaries[f]
	if !ok {
		return nil, fmt.Errorf("read %s rules: iptables-%s does not work for the family: %s", f, b.Name, b.Missing[f])
	}
	var text strings.Builder
	for _, table := range iptables.Tables {
		var rules strings.Builder
		fmt.Fprintf(&text, "*%s\n", table)
		for _, c := range chains {
			if c.Table != table {
				continue
			}
			list, err := b.run(ctx, command{path: bin.Command, args: []string{"-w", lockWait, "-t", table, "-S", c.Chain}})
			var exit *exitError
			switch {
			case err == nil:
			case errors.As(err, &exit) && !lockedOut(err) && iptables.Owned(table, c.Chain):
				continue
			default:
				return nil, fmt.Errorf("read %s rules: %w", f, err)
			}
			head, rest, _ := strings.Cut(list, "\n")
			policy := "ACCEPT"
			if strings.HasPrefix(head, "-N ") {
				policy = "-"
			}
			fmt.Fprintf(&text, ":%s %s [0:0]\n", c.Chain, policy)
			rules.WriteString(rest)
		}
		text.WriteString(rules.String() + "COMMIT\n")
	}
	r, err := iptables.Parse(f, text.String())
	if err != nil {
		return nil, fmt.Errorf("read %s rules: %w", f, err)
	}
	return r, nil
}

// Look is Read that asks for no table by name: one that is not there is not made, and counts as empty.
func (b *Backend) Look(ctx context.Context, f cluster.Family) (*iptables.Ruleset, error) {
	p := iptables.NewParser(f, nil)
	if _, err := b.run(ctx, command{path: b.Binaries[f].Save, stdout: p}); err != nil {
		return nil, fmt.Errorf("look at %s rules: %w", f, err)
	}
	r, err := p.Ruleset()
	if err != nil {
		return nil, fmt.Errorf("look at %s rules: %w", f, err)
	}
	return r, nil
}

// Apply gives a Restore to iptables-restore. The tables commit one after the other, so after an error some of it may
// be in effect. When the program refused, the error is a *RestoreError, for which errors.Is(err, ErrLocked) tells
// that only the xtables lock was not to be had.
//
// Counters are not restored: --noflush keeps those of the rules that stay, and new rules begin at zero.
func (b *Backend) Apply(ctx context.Context, f cluster.Family, r *iptables.Restore) error {
	bin, ok := b.Binaries[f]
	if !ok {
		return fmt.Errorf("write %s rules: iptables-%s does not work for the family: %s", f, b.Name, b.Missing[f])
	}
	input := r.String()
	w := b.writes.begin(f, r.Touched())
	_, err := b.run(ctx, command{path: bin.Restore, args: []string{"-w", lockWait, "--noflush"}, stdin: input})
	b.writes.end(f, w, err)
	var exit *exitError
	if errors.As(err, &exit) {
		return newRestoreError(f, exit, input)
	}
	if err != nil {
		return fmt.Errorf("write %s rules: %w", f, err)
	}
	return nil
}

// ErrLocked is found by errors.Is in the error of a command that waited in vain for the xtables lock.
var ErrLocked = errors.New("the xtables lock is held by another process")

// A RestoreError is iptables-restore's refusal of its input.
//
// What the program says depends on who refuses, and on the backend (1.8.9):
//
//	parser                  exit 2  Error occurred at line: 4
//	kernel, legacy          exit 1  iptables-restore: line 6 failed                  (the line of COMMIT)
//	kernel, nft             exit 4  line 4: RULE_APPEND failed (No such file …): rule in chain KUBE-SVC-A
//	unknown chain, nft      exit 2  Chain 'X' does not exist; Error occurred at line: 6   (the line of COMMIT)
//	lock, legacy            exit 4  Another app is currently holding the xtables lock. Stopped waiting after 5s.
//
// So the exit code does not tell a lock from a refusal, and a line may be that of a COMMIT.
type RestoreError struct {
	Family cluster.Family
	// Code is the exit status.
	Code int
	// Line is the first line of the input, counted from 1, that the program named, and Input its text; 0 and "" when
	// it named none.
	Line  int
	Input string
	// Lines are all lines that it named: iptables-nft names every rule that the kernel refused.
	Lines []int
	// Stderr is what the program printed.
	Stderr string
	// Holder names the process that holds the xtables lock, when the lock was the reason and it is known.
	Holder string

	locked bool
}

// lockMessage is part of what legacy says when it does not get the lock.
const lockMessage = "holding the xtables lock"

var lineNumber = regexp.MustCompile(`\bline:? ([0-9]+)`)

func newRestoreError(f cluster.Family, exit *exitError, input string) *RestoreError {
	e := &RestoreError{Family: f, Code: exit.code, Stderr: exit.stderr}
	if strings.Contains(exit.stderr, lockMessage) {
		e.locked = true
		e.Holder = lockHolder()
		return e
	}
	for _, m := range lineNumber.FindAllStringSubmatch(exit.stderr, -1) {
		if n, err := strconv.Atoi(m[1]); err == nil {
			e.Lines = append(e.Lines, n)
		}
	}
	if len(e.Lines) > 0 {
		e.Line = e.Lines[0]
		e.Input = lineOf(input, e.Line)
	}
	return e
}

// lineOf returns a line of a text, counted from 1, or "".
func lineOf(text string, n int) string {
	i := 0
	for line := range strings.Lines(text) {
		if i++; i == n {
			return strings.TrimSuffix(line, "\n")
		}
	}
	return ""
}

func (e *RestoreError) Error() string {
	if e.locked {
		holder := e.Holder
		if holder == "" {
			holder = "unknown"
		}
		return fmt.Sprintf("write %s rules: %v (holder: %s), waited %s s", e.Family, ErrLocked, holder, lockWait)
	}
	s := fmt.Sprintf("write %s rules: iptables-restore refused them with exit status %d: %s", e.Family, e.Code, summary(e.Stderr))
	if e.Input != "" {
		s += fmt.Sprintf(": line %d is %q", e.Line, e.Input)
	}
	return s
}

// Is tells that the error is ErrLocked.
func (e *RestoreError) Is(target error) bool { return target == ErrLocked && e.locked }

// refusal returns the RestoreError in err when it says that the rules themselves were refused.
func refusal(err error) (*RestoreError, bool) {
	var e *RestoreError
	if errors.As(err, &e) && !e.locked {
		return e, true
	}
	return nil, false
}
