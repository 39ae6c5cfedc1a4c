package faultproxy

import (
	"net/http"

	"github.com/kvtier/kvtier/internal/httpapi"
)

// State is what the HTTP interface answers.
type State struct {
	Listen   string `json:"listen"`
	Upstream string `json:"upstream"`
	Faults   Faults `json:"faults"`
	Stats    Stats  `json:"stats"`
}

// Handler lets programs set faults:
//
//	GET    /v1/faults   what is in force, and what was done so far
//	PUT    /v1/faults   replace them by those in the body; fields that are not there are none
//	DELETE /v1/faults   heal
//	GET    /healthz     the process lives; the only route that needs no token
func Handler(p *Proxy, token string) http.Handler {
	mux := http.NewServeMux()
	show := func(w http.ResponseWriter) {
		httpapi.WriteJSON(w, http.StatusOK, State{Listen: p.Addr(), Upstream: p.opts.Upstream, Faults: p.Faults(), Stats: p.Stats()})
	}
	set := func(w http.ResponseWriter, f Faults) {
		if err := f.Validate(); err != nil {
			httpapi.WriteError(w, httpapi.BadRequest("invalid_faults", "", err.Error()))
		} else if err := p.Set(f); err != nil {
			httpapi.WriteError(w, err)
		} else {
			show(w)
		}
	}
	mux.HandleFunc("GET /v1/faults", func(w http.ResponseWriter, _ *http.Request) { show(w) })
	mux.HandleFunc("DELETE /v1/faults", func(w http.ResponseWriter, _ *http.Request) { set(w, Faults{}) })
	mux.HandleFunc("PUT /v1/faults", func(w http.ResponseWriter, r *http.Request) {
		var f Faults
		if err := httpapi.ReadJSON(w, r, 0, &f); err != nil {
			httpapi.WriteError(w, err)
			return
		}
		set(w, f)
	})
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		httpapi.WriteJSON(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	return httpapi.Handler(mux, httpapi.Options{Token: token})
}
