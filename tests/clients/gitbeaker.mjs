// Evaluates expressions with @gitbeaker/rest: each line on standard input is a call, each line printed its outcome.
import { createInterface } from 'node:readline';
import { Gitlab } from '@gitbeaker/rest';

const [host, token] = process.argv.slice(2);
const api = new Gitlab({ host, token });

for await (const line of createInterface({ input: process.stdin })) {
    const { expression, names } = JSON.parse(line);
    const evaluate = new Function('api', ...Object.keys(names), `return (async () => ${expression})()`);
    const outcome = await evaluate(api, ...Object.values(names)).then(
        (value) => ({ value: value ?? null }),
        (error) => ({ error: `${error.cause?.response?.status ?? ''} ${error.cause?.description ?? error.message}`.trim() }));
    console.log(JSON.stringify(outcome));
}
