package main

import (
	"sync/atomic"

	"github.com/mysqllock/go-leaderelection-mysql/mysqllock/mysqltest"
)

// loss is an answer that is lost, and the connection with it.
type loss struct {
	to  string // the statement that the server has answered begins so; "" for none
	why string // the fault that is told when that has happened
}

// proxy is the network between one candidate and the server.
type proxy struct {
	*mysqltest.Proxy

	loss atomic.Pointer[loss]
}

func newProxy(target string, tell func(fault string)) (*proxy, error) {
	started, err := mysqltest.NewProxy(target)
	if err != nil {
		return nil, err
	}
	p := &proxy{Proxy: started}
	p.lose(loss{})
	p.Watch(func() mysqltest.Hooks {
		var said conversation
		return mysqltest.Hooks{
			Request: func(packets []byte) { said.request(*p.loss.Load(), packets) },
			Reply: func(packet []byte) (lose bool) {
				why := said.answer(packet)
				if why != "" {
					tell(why)
				}
				return why != ""
			},
		}
	})
	return p, nil
}

// lose has the proxy lose such answers from now on.
func (p *proxy) lose(l loss) { p.loss.Store(&l) }
