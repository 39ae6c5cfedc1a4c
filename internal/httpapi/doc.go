// Package httpapi is what the HTTP servers of this project share: reading JSON bodies with limits and helpful errors, errors in OpenAI's
// shape, bearer tokens, the rule about listening beyond this machine, and a server with time-outs that stops gracefully.
package httpapi
