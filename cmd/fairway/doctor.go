package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/fairway-net/fairway/agent"
)

func doctorCommand() *cobra.Command {
	o := agent.DoctorOptions{Format: "text", Socket: agent.DefaultControlSocket, HostRoot: "/"}
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Tell whether this node is all right, and for what is not, what to do",
		Long: `Tell whether this node is all right, and for what is not, what to do. It asks the running agent at its control socket, and looks at the
kernel and at the host's files; it changes nothing, needs no API, and takes root.

The exit code is 0 when all is well, warnings allowed; 1 when something is wrong; 2 when nothing was found wrong, but something could
not be told.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return agent.Doctor(cmd.Context(), o, cmd.OutOrStdout())
		},
	}
	c.Flags().StringVar(&o.Socket, "control-socket", o.Socket, "`path` of the agent's control socket")
	c.Flags().StringVar(&o.HostRoot, "host-root", o.HostRoot, "`folder` in which the host's files are, in a container that has them mounted")
	c.Flags().StringVarP(&o.Format, "output", "o", o.Format, "one of "+strings.Join(agent.DoctorFormats[:], ", "))
	answerOrFail(c, agent.ErrUnwell)
	return c
}
