package llamacpp

import "net/http"

// WithTransport returns o with something between the engine and its server.
func WithTransport(o Options, wrap func(http.RoundTripper) http.RoundTripper) Options {
	o.wrap = wrap
	return o
}
