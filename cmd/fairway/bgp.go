package main

import (
	"errors"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fairway-net/fairway/agent"
	"github.com/fairway-net/fairway/routes/bgp/process"
)

// cantAsk is the code with which fairway bgp and fairway doctor end when they have no answer; 1 means that something is not as it should be.
const cantAsk = 2

// An exitError is an error that ends the program with a code of its own.
type exitError struct {
	error
	code int
}

// Unwrap returns the error.
func (e exitError) Unwrap() error { return e.error }

func bgpCommand() *cobra.Command {
	q := agent.BGPQuery{}
	c := &cobra.Command{
		Use:   "bgp",
		Short: "Print the BGP sessions of this node's running agent, or their routes",
		Long: `Print the BGP sessions of this node's running agent, or their routes. It asks the agent at its control socket, which takes root.

The exit code is 0 when all sessions are up, 1 when some are not, 2 when there is no answer.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return agent.ShowBGP(cmd.Context(), q, cmd.OutOrStdout())
		},
	}
	c.PersistentFlags().StringVar(&q.Socket, "control-socket", agent.DefaultControlSocket, "`path` of the agent's control socket")
	c.PersistentFlags().StringVarP(&q.Format, "output", "o", "text", "one of "+strings.Join(agent.BGPFormats[:], ", "))
	routes := &cobra.Command{
		Use:       "routes [sent|received]",
		Short:     "Print the routes that are sent to peers and received from them, with their attributes",
		Args:      cobra.MaximumNArgs(1),
		ValidArgs: []string{"sent", "received"},
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				q.Direction = args[0]
			}
			return agent.ShowBGPRoutes(cmd.Context(), q, cmd.OutOrStdout())
		},
	}
	routes.Flags().StringVar(&q.Peer, "peer", "", "`address` of the peer whose routes are printed; all without")
	c.AddCommand(routes)
	for _, c := range []*cobra.Command{c, routes} {
		answerOrFail(c, agent.ErrSessionsDown)
	}
	return c
}

// answerOrFail gives the errors of a command the code cantAsk, but for the one that is an answer.
func answerOrFail(c *cobra.Command, bad error) {
	coded := func(err error) error {
		if err == nil || errors.Is(err, bad) {
			return err
		}
		return exitError{err, cantAsk}
	}
	args, run := c.Args, c.RunE
	c.Args = func(cmd *cobra.Command, a []string) error { return coded(args(cmd, a)) }
	c.RunE = func(cmd *cobra.Command, a []string) error { return coded(run(cmd, a)) }
	c.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return coded(err) })
}

// speakerCommand is what the agent runs its BGP sessions with.
func speakerCommand() *cobra.Command {
	return &cobra.Command{
		Use:    process.Command,
		Short:  "Speak BGP for the agent, which starts this itself",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(*cobra.Command, []string) error { return process.Main() },
	}
}
