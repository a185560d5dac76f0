// Calls of the Vercel AI SDK, with its telemetry sent to `voight otlp`: node vercel_app.mjs ENDPOINT PROVIDER json|protobuf
import { NodeTracerProvider, BatchSpanProcessor } from '@opentelemetry/sdk-trace-node';
import { OTLPTraceExporter as Json } from '@opentelemetry/exporter-trace-otlp-http';
import { OTLPTraceExporter as Proto } from '@opentelemetry/exporter-trace-otlp-proto';
import { generateText, streamText, embed, jsonSchema, tool, stepCountIs } from 'ai';
import { createOpenAI } from '@ai-sdk/openai';

const [endpoint, provider, encoding] = process.argv.slice(2);
const Exporter = encoding === 'json' ? Json : Proto;
const exporter = new Exporter({ url: endpoint, compression: encoding === 'json' ? 'none' : 'gzip' });
const traces = new NodeTracerProvider({ spanProcessors: [new BatchSpanProcessor(exporter)] });
traces.register();
// The loopback provider keeps its own count by the user whom a prompt names. It calls no tools: its first answer to a request that has some is made to.
const withTool = async (url, init) => {
  const answer = await fetch(url, init);
  const asked = JSON.parse(init.body);
  if (!asked.tools || asked.messages.some((message) => message.role === 'tool')) return answer;
  const body = await answer.json();
  body.choices[0].message = { role: 'assistant', content: null, tool_calls: [{ id: 'call_1', type: 'function', function: { name: 'weather', arguments: '{"city":"Berlin"}' } }] };
  body.choices[0].finish_reason = 'tool_calls';
  return new Response(JSON.stringify(body), { status: 200, headers: { 'content-type': 'application/json' } });
};
const openai = createOpenAI({ baseURL: provider, apiKey: 'any', fetch: withTool });
const telemetry = (userId, plan) => ({ isEnabled: true, functionId: 'summary', metadata: { userId, plan, tenantId: 't_1', feature: 'chat' } });

await generateText({ model: openai.chat('gpt-5-nano'), prompt: '[user:u_plain] plain', experimental_telemetry: telemetry('u_plain', 'free') });
const streamed = streamText({ model: openai.chat('gpt-5-nano'), prompt: '[user:u_stream] streamed', experimental_telemetry: telemetry('u_stream', 'pro') });
for await (const _ of streamed.textStream);
await generateText({ model: openai('gpt-5-nano'), prompt: '[user:u_resp] responses', experimental_telemetry: telemetry('u_resp', 'pro') });
await embed({ model: openai.embedding('text-embedding-3-small'), value: '[user:u_embed] a value', experimental_telemetry: telemetry('u_embed', 'pro') });
try { await generateText({ model: openai.chat('gpt-5-nano'), maxRetries: 0, prompt: '[user:u_error] [x-loopback-status: 500]', experimental_telemetry: telemetry('u_error', 'free') }); } catch {}
const steps = await generateText({
  model: openai.chat('gpt-5-nano'), prompt: '[user:u_tools] use the tool', stopWhen: stepCountIs(2),
  tools: { weather: tool({ description: 'weather', inputSchema: jsonSchema({ type: 'object', properties: { city: { type: 'string' } } }), execute: async () => 'sunny' }) },
  experimental_telemetry: telemetry('u_tools', 'pro') });
console.log(JSON.stringify({ steps: steps.steps.length }));
await traces.forceFlush();
await traces.shutdown();
