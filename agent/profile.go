package agent

import (
	"fmt"
	"io"
	"net/http"
	"net/http/pprof"
	"strconv"

	"k8s.io/klog/v2"
)

// profile serves what kube-proxy serves with enableProfiling: /debug/pprof/, and /debug/flags/v, to which a PUT sets the
// verbosity of the log. Whoever reaches the server can slow the agent down by it.
func profile(mux *http.ServeMux) {
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("/debug/flags/v", setVerbosity)
}

// longestVerbosity is more than any verbosity takes, in bytes.
const longestVerbosity = 16

func setVerbosity(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	answer := func(code int, text string) {
		w.WriteHeader(code)
		fmt.Fprintln(w, text)
	}
	if r.Method != http.MethodPut {
		answer(http.StatusMethodNotAllowed, "expected PUT with a verbosity such as 4")
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, longestVerbosity))
	if err != nil {
		answer(http.StatusBadRequest, err.Error())
		return
	}
	if _, err := strconv.ParseUint(string(body), 10, 31); err != nil {
		answer(http.StatusBadRequest, fmt.Sprintf("%q is no verbosity, expected a number such as 4", body))
		return
	}
	var level klog.Level
	if err := level.Set(string(body)); err != nil {
		answer(http.StatusBadRequest, err.Error())
		return
	}
	answer(http.StatusOK, "the verbosity is "+string(body))
}
